"""What a reader returns: the labelled sequences of a dataset, and what it skipped and why."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from services.official_splits import Part, find_leak

SYNTHETIC_MARKER = "synthetic.json"
"""File at the top of a set that `foldwise synth` wrote; readers do not ask whether such a set is complete."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a video; both ends are included."""

    start: float | None = None
    """Frame number (from 0) or seconds; None: from the first frame."""

    end: float | None = None
    """Frame number (from 0) or seconds; None: to the last frame."""

    seconds: bool = False
    """Whether the ends are seconds of playing time instead of frame numbers."""


WHOLE_VIDEO = Span()
"""A whole video."""


@dataclass(frozen=True, kw_only=True)
class FrameSequence:
    """One labelled video of one subject: image files in temporal order, or a video file."""

    clip_id: str
    """Unique in its dataset and stable over machines, such as `S005_001`."""

    subject: str
    """The person; empty if the dataset gives no subjects."""

    label: str
    """The class name in lower case."""

    source: str
    """Path relative to the dataset's folder, with slashes; the same on every machine."""

    frames: tuple[Path, ...] = ()
    """All frames in temporal order, as absolute paths; empty if `video` is given."""

    video: Path | None = None
    """The video file, as an absolute path."""

    span: Span = WHOLE_VIDEO
    """The part of `video` that belongs to the sequence."""

    fold: str = ""
    """Name of its fold in the dataset's own split; empty if the dataset has none."""

    split: Part | Literal[""] = ""
    """Its part of the dataset's own split; empty if the dataset has none."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the sequence is made of."""
        return self.frames if self.video is None else (self.video,)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file, a folder or a part of a file that is not used, and the reason."""

    path: Path
    reason: str
    part: str = ""
    """The part of the file, such as `line 7` of a list; empty for all of it."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset as found on disk: every file and folder belongs to a sequence or is among the skipped."""

    name: str
    """Name of the folder of its caches: lower-case letters, digits, hyphens."""

    classes: tuple[str, ...]
    """Class names in the order of their label numbers (0, 1, ...)."""

    sequences: tuple[FrameSequence, ...]
    """Ordered by clip id."""

    skipped: tuple[Skipped, ...] = ()
    """What is not used; a folder includes everything in it."""

    warnings: tuple[str, ...] = ()
    """For people, one sentence each."""

    colour: bool = False
    """Whether clips keep their colours; otherwise every frame is decoded to gray."""

    settings: Mapping[str, str] = field(default_factory=dict)
    """The reader's settings, which the manifest stores."""

    def reasons(self, root: Path) -> dict[str, str]:
        """The reason for each skipped path, relative to `root` and followed by the part of the file."""
        found: dict[str, str] = {}
        for skip in self.skipped:
            where = as_text(os.path.relpath(skip.path, root).replace(os.sep, "/"))
            where = f"{where} {skip.part}" if skip.part else where
            found[where] = f"{found[where]}; {skip.reason}" if where in found else skip.reason
        return found


def as_text(name: str) -> str:
    """A file's name or path as text that can be stored and shown, the same on every machine.

    Bytes that are not UTF-8 and unprintable characters become backslash escapes; letters with accents are
    composed, because some file systems store them in two parts.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in unicodedata.normalize("NFC", text)
    )


def completeness_warnings(
    sequences: Iterable[FrameSequence], *, name: str, subjects: int, counts: Mapping[str, int]
) -> tuple[str, ...]:
    """A warning that lists how these sequences differ from the complete set; empty if they do not.

    Args:
        sequences: all that the reader found.
        name: the genuine set's name for people.
        subjects: number of subjects in the complete set.
        counts: sequences of each class in the complete set.
    """
    sequences = list(sequences)
    found = Counter(sequence.label for sequence in sequences)
    pairs = [
        ("sequences", len(sequences), sum(counts.values())),
        ("subjects", len({sequence.subject for sequence in sequences}), subjects),
        *((label, found[label], complete) for label, complete in counts.items()),
    ]
    differing = [
        f"{count} {what} instead of {complete}" for what, count, complete in pairs if count != complete
    ]
    return (f"This is not the complete {name} set: {', '.join(differing)}.",) if differing else ()


def split_warnings(sequences: Iterable[FrameSequence]) -> tuple[str, ...]:
    """Warnings about a dataset's own split: a subject on two sides, or no subjects to find one by."""
    sequences = list(sequences)
    if not all(sequence.subject for sequence in sequences):
        return (
            "No subjects are given, so nobody can check whether the split trains and tests on the same person; "
            "of the protocols, only given_folds, holdout and all can use this cache.",
        )
    sides: dict[str, list[tuple[str, str, str]]] = {
        "given_folds": [(s.clip_id, s.subject, f"fold {s.fold}") for s in sequences if s.fold],
        "holdout": [(s.clip_id, s.subject, s.split) for s in sequences if s.split],
    }
    return tuple(
        f"The protocol {protocol} will be refused: {leak}."
        for protocol, clips in sides.items()
        if (leak := find_leak(clips))
    )


def first_few(clip_ids: list[str]) -> str:
    """The first five clip ids, for a warning."""
    return ", ".join(clip_ids[:5]) + (", ..." if len(clip_ids) > 5 else "")
