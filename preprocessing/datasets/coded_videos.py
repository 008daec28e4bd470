"""Videos whose file names code the subject, the emotion and the take, in folders of any names.

A take can have several files: a recording with and without sound, a conversion, a second copy. It is read once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.datasets.reader import FrameSequence, Span, as_text
from preprocessing.datasets.tree import Tree, is_folder, raise_if_disk_failed
from preprocessing.datasets.video_list import NotAClip
from preprocessing.media_kind import VIDEO_SUFFIXES
from preprocessing.unreadable import known_reason
from services.errors import InvalidInput

MAX_SEARCH_DEPTH = 8
"""Levels below the root that are searched for videos."""

_ARCHIVE_SUFFIXES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".gz")
_SOUND_SUFFIXES = (".wav", ".mp3")
_MAX_POINTER_BYTES = 1000
"""Size of a file below which its content is read; pointers of Git LFS are far shorter, videos longer."""


@dataclass(frozen=True, kw_only=True)
class Take:
    """One performance of one subject."""

    clip_id: str
    subject: str
    label: str


@dataclass(frozen=True, kw_only=True)
class NameCode:
    """How a set's file names code its takes."""

    layout: str
    """The set's name for people."""

    pattern: re.Pattern[str]
    """Matches the whole name of a video without its suffix."""

    form: str
    """The form of such a name, for people, such as `actor_sentence_emotion_level`."""

    example: str
    """Path of a video in an unpacked set, relative to the root."""

    read: Callable[[re.Match[str]], Take]
    """The take of a matching name; raises `NotAClip` if the set has no such take or it is not asked for."""

    rank: Callable[[Path], int]
    """Of several files of a take, the one of lowest rank is read, and of those the first by path."""


def read_coded_videos(tree: Tree, code: NameCode, span: Span) -> tuple[FrameSequence, ...]:
    """The takes in the root and up to eight levels below it, ordered by clip id.

    Further files of a take, empty files, pointers of Git LFS and takes that are not asked for are skipped.

    Args:
        tree: the root; `use` and `skip` are called for each video whose name has the set's code.
        code: the names of the set.
        span: the part of each video that is read.

    Raises:
        InvalidInput: no video has a name of the set.
        OSError: the disk failed.
    """
    files: dict[Take, list[Path]] = {}
    found = False
    for folder in tree.walk(MAX_SEARCH_DEPTH):
        for path in tree.files(folder):
            match = code.pattern.fullmatch(path.stem)
            if match is None or not _is_named_like_video(path):
                continue
            found = True
            try:
                take = code.read(match)
                _check_content(path)
            except NotAClip as error:
                tree.skip(path, str(error))
                continue
            files.setdefault(take, []).append(path)
    if not found:
        raise InvalidInput(_no_video_message(tree, code), field="root")
    return tuple(
        _sequence(tree, take, sorted(files[take], key=lambda path: (code.rank(path), os.fsencode(path))), span)
        for take in sorted(files, key=lambda take: take.clip_id)
    )


def why_no_coded_video(path: Path, code: NameCode) -> str | None:
    """Why a file or folder that holds no take is not used; None if it is nothing that people often have."""
    if is_folder(path):
        return "sound without pictures" if path.name.casefold().startswith("audio") else None
    suffix = path.suffix.casefold()
    if suffix in _ARCHIVE_SUFFIXES:
        return "an archive; unpack it"
    if suffix in _SOUND_SUFFIXES:
        return "sound without pictures"
    return f"a video whose name is not {code.form}" if _is_named_like_video(path) else None


def _is_named_like_video(path: Path) -> bool:
    return path.suffix.casefold() in VIDEO_SUFFIXES


def _check_content(path: Path) -> None:
    try:
        if path.stat().st_size > _MAX_POINTER_BYTES:
            return
        reason = known_reason(path.read_bytes())
    except OSError as error:
        raise_if_disk_failed(path, error)
        reason = f"it cannot be read: {error.strerror}"
    if reason is not None:
        raise NotAClip(reason)


def _no_video_message(tree: Tree, code: NameCode) -> str:
    archives = [
        as_text(path.name) for path in tree.files(tree.root) if path.suffix.casefold() in _ARCHIVE_SUFFIXES
    ]
    advice = f"unpack {archives[0]} and the like" if archives else "unpack the set"
    return (
        f"root is {as_text(str(tree.root))}, which holds no video of {code.layout}, up to {MAX_SEARCH_DEPTH} "
        f"levels down; {advice} there, so that it holds {code.example} (the name is {code.form})."
    )


def _sequence(tree: Tree, take: Take, paths: Sequence[Path], span: Span) -> FrameSequence:
    used, *others = paths
    source = as_text(used.relative_to(tree.root).as_posix())
    tree.use(used)
    for path in others:
        tree.skip(path, "another file of a take that is read once")
    return FrameSequence(
        clip_id=take.clip_id, subject=take.subject, label=take.label, source=source, video=used, span=span
    )
