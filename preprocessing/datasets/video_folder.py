"""Your own videos: `subject/label/clip.mp4`, a folder of images instead of a video, or a list in a CSV file."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from preprocessing.datasets.image_files import IMAGES, images_of_clip
from preprocessing.datasets.reader import WHOLE_VIDEO, Dataset, FrameSequence, Span, as_text
from preprocessing.datasets.tree import Tree, is_clutter, is_file, is_folder
from services.errors import InvalidInput, NotFound

NAME = "video-folder"
VIDEOS = (".mp4", ".avi", ".mov", ".mkv")
COLUMNS = ("path", "subject", "label", "start", "end")

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})? ?s")
_FRAME = re.compile(r"[0-9]{1,9}")


def read_video_folder(root: Path, *, manifest: str = "", name: str = NAME, colour: str = "yes") -> Dataset:
    """Read the clips under `root` from its folders or a list; the classes are the labels in alphabetical order.

    Everything under `root` is part of a clip or listed in `skipped`, as is every row of the list that is no
    clip. Videos and images are not opened.

    Args:
        root: the folder of the videos.
        manifest: a CSV file, relative to `root`, with the columns path (relative to `root`), subject, label and
            optionally start and end: frames counted from 0 or seconds like `2.5s`, both ends included. Empty:
            the folders give subject and label.
        name: name of the folder of its caches.
        colour: `yes`, or `no` for gray clips.

    Raises:
        NotFound: `root` or `manifest` does not exist.
        InvalidInput: `root` is no folder, `manifest` cannot be read or lacks a column, or another setting has
            an invalid value.
        OSError: the disk failed.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"name is {name!r}; use lower case letters, digits and hyphens.", field="name")
    if colour not in {"yes", "no"}:
        raise InvalidInput(f"colour is {colour!r}; use yes or no.", field="colour")
    tree = Tree(root, layout="a folder of videos (subject/label/clip)")
    clips = _Clips(tree)
    if manifest:
        _read_manifest(clips, tree.root / Path(manifest).expanduser())
    else:
        _read_folders(clips)
    sequences = tuple(clips.by_id[clip_id] for clip_id in sorted(clips.by_id))
    clips.warnings += _similar_names({sequence.subject for sequence in sequences})
    return Dataset(
        name=name,
        classes=tuple(sorted({sequence.label for sequence in sequences})),
        sequences=sequences,
        skipped=tree.finish(_not_in_list if manifest else _not_in_folders),
        warnings=tuple(clips.warnings),
        colour=colour == "yes",
        settings={"manifest": as_text(manifest), "name": name, "colour": colour},
    )


class _NotAClip(Exception):
    """The reason why something is no clip."""


class _Clips:
    """The clips found so far, by id."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.by_id: dict[str, FrameSequence] = {}
        self.warnings: list[str] = []

    def add(self, path: Path, *, subject: str, label: str, span: Span = WHOLE_VIDEO, ends: str = "") -> None:
        """Add the clip of a video or a folder of images; `ends` is `span` as the list writes it.

        Raises:
            _NotAClip: it is no clip, or a duplicate.
        """
        if not label:
            raise _NotAClip("no label")
        source = as_text(path.relative_to(self.tree.root).as_posix())
        clip_id = f"{source}#{ends}" if ends else source
        if clip_id in self.by_id:
            raise _NotAClip(f"a duplicate of the clip {clip_id}")
        frames = self._images_of(path, span) if is_folder(path) else ()
        if not frames:
            _check_video(path)
            self.tree.use(path)
        self.by_id[clip_id] = FrameSequence(
            clip_id=clip_id,
            subject=subject,
            label=label,
            source=source,
            frames=frames,
            video=None if frames else path,
            span=WHOLE_VIDEO if frames else span,
        )

    def _images_of(self, folder: Path, span: Span) -> tuple[Path, ...]:
        images = _images(self.tree, folder)
        if not images:
            raise _NotAClip("no images in it")
        if span.seconds:
            raise _NotAClip("start and end of a folder of images are frames, not seconds")
        last = len(images) - 1
        first, end = int(span.start or 0), last if span.end is None else int(span.end)
        if max(first, end) > last:
            raise _NotAClip(f"it has no frame {max(first, end)}, only frames 0 to {last}")
        self.tree.use(*images)
        return tuple(images[first : end + 1])


def _check_video(path: Path) -> None:
    if not is_file(path) or path.suffix.casefold() not in VIDEOS:
        raise _NotAClip(f"neither a video ({', '.join(VIDEOS)}) nor a folder of images")
    if path.stat().st_size == 0:
        raise _NotAClip("an empty file")


def _read_folders(clips: _Clips) -> None:
    tree = clips.tree
    for subject in tree.folders(tree.root):
        for label in tree.folders(subject):
            inside = tree.entries(label)
            videos = [path for path in inside if _is_video(path)]
            folders = [path for path in inside if is_folder(path) and not is_clutter(path)]
            # images directly in the label's folder are one clip
            alone = [label] if _images(tree, label) else []
            for path in (*videos, *folders, *alone):
                try:
                    clips.add(path, subject=as_text(subject.name), label=_label(label.name))
                except _NotAClip as error:
                    tree.skip(path, str(error))


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row of the list, as text."""

    path: str
    subject: str
    label: str
    start: str
    end: str


def _read_manifest(clips: _Clips, manifest: Path) -> None:
    header, rows = _parse(manifest)
    clips.tree.use(manifest)
    if unknown := [name for name in header if name not in COLUMNS]:
        named = ", ".join(as_text(name) or "(no name)" for name in unknown)
        clips.warnings.append(f"Columns of {as_text(manifest.name)} that were not read: {named}.")
    for number, row in rows:
        try:
            _add_row(clips, row)
        except _NotAClip as error:
            clips.tree.skip(manifest, str(error), part=f"line {number}")


def _parse(manifest: Path) -> tuple[list[str], list[tuple[int, _Row]]]:
    """The header and the rows, each with the line it ends on."""
    try:
        # file names may be in any encoding; bytes that are not UTF-8 stay as they are
        text = manifest.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except FileNotFoundError:
        raise NotFound(
            f"manifest is {manifest}, which does not exist; give it relative to root.", field="manifest"
        ) from None
    except OSError as error:
        raise InvalidInput(
            f"manifest is {manifest}, which cannot be read: {error.strerror}.", field="manifest"
        ) from error
    first = text.partition("\n")[0]
    # spreadsheets write semicolons where the comma is the decimal sign
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=";" if first.count(";") > first.count(",") else ","
    )
    try:
        header = [name.strip().casefold() for name in next(reader, [])]
        lines = [(reader.line_num, line) for line in reader if any(value.strip() for value in line)]
    except csv.Error as error:
        raise InvalidInput(
            f"manifest is {manifest}, whose line {reader.line_num} is no CSV: {error}.", field="manifest"
        ) from error
    if missing := [name for name in COLUMNS[:3] if name not in header]:
        raise InvalidInput(
            f"manifest is {manifest}, whose first line lacks {', '.join(missing)}; name the columns "
            f"{', '.join(COLUMNS)} there.",
            field="manifest",
        )
    index_of = {name: header.index(name) for name in COLUMNS if name in header}

    def value(line: list[str], name: str) -> str:
        return line[index_of[name]].strip() if name in index_of and index_of[name] < len(line) else ""

    return header, [(number, _Row(**{name: value(line, name) for name in COLUMNS})) for number, line in lines]


def _add_row(clips: _Clips, row: _Row) -> None:
    for column in COLUMNS[:3]:
        if not getattr(row, column):
            raise _NotAClip(f"no {column}")
    root, shown = clips.tree.root, as_text(row.path)
    path = Path(os.path.abspath(root / row.path))
    if not path.is_relative_to(root):
        raise _NotAClip(f"{shown} is outside root")
    if "\0" in row.path or not os.path.lexists(path):
        raise _NotAClip(f"{shown} is not there")
    ends = f"{row.start}-{row.end}" if row.start or row.end else ""
    try:
        span = _span(row.start, row.end)
        clips.add(path, subject=as_text(row.subject), label=_label(row.label), span=span, ends=ends)
    except _NotAClip as error:
        raise _NotAClip(f"{shown}: {error}") from None


def _span(start: str, end: str) -> Span:
    ends = [text for text in (start, end) if text]
    seconds = [text for text in ends if _SECONDS.fullmatch(text)]
    frames = [text for text in ends if _FRAME.fullmatch(text)]
    if ends not in (seconds, frames):
        raise _NotAClip(
            f"start {as_text(start)!r} and end {as_text(end)!r} must both be frames counted from 0, or both "
            "seconds like 2.5s"
        )
    first, last = (float(text.rstrip(" s")) if text else None for text in (start, end))
    if first is not None and last is not None and last < first:
        raise _NotAClip(f"end {end} is before start {start}")
    return Span(start=first, end=last, seconds=bool(seconds))


def _images(tree: Tree, folder: Path) -> list[Path]:
    def skip_duplicate(path: Path, used: Path) -> None:
        tree.skip(path, f"named like {as_text(used.name)}: the same frame in another format")

    return images_of_clip(tree.files(folder), skip_duplicate)


def _is_video(path: Path) -> bool:
    return is_file(path) and path.suffix.casefold() in VIDEOS and not is_clutter(path)


def _similar_names(subjects: set[str]) -> Iterator[str]:
    by_folded: dict[str, list[str]] = {}
    for subject in sorted(subjects):
        by_folded.setdefault("".join(subject.casefold().split()), []).append(subject)
    for names in by_folded.values():
        if len(names) > 1:
            named = ", ".join(names)
            yield f"The subjects {named} count as different people; if they are one person, use one name."


def _label(text: str) -> str:
    return as_text(text).strip().lower()


def _not_in_folders(path: Path) -> str | None:
    if _is_video(path):
        return "a video outside subject/label"
    if is_folder(path):
        return "a folder without videos or images in subject/label/clip"
    if path.suffix.casefold() in IMAGES:
        return "an image outside subject/label"
    return "neither a video nor an image"


def _not_in_list(_path: Path) -> str:
    return "not in the list"
