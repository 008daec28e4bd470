"""What a reader gives: the labelled sequences of a dataset, and what it left out and why."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SYNTHETIC_MARKER = "synthetic.json"
"""The file at the top of a set that `foldwise synth` wrote; such a set is not held against the genuine one."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of a video; both ends belong to it."""

    start: float | None = None
    """A frame counted from 0, or seconds; None: from the first frame."""

    end: float | None = None
    """Likewise; None: to the last frame."""

    seconds: bool = False
    """Whether the ends are seconds of playing time and not frames."""


WHOLE_VIDEO = Span()
"""A whole video."""


@dataclass(frozen=True, kw_only=True)
class FrameSequence:
    """One labelled video of one subject: image files in temporal order, or a video file."""

    clip_id: str
    """Unique in its dataset and stable over machines, such as `S005_001`."""

    subject: str
    label: str
    """The class name in lower case."""

    source: str
    """Where it lies in its dataset, with slashes; the same wherever the dataset's folder is."""

    frames: tuple[Path, ...] = ()
    """All frames, first to last; absolute paths. Empty where `video` is given."""

    video: Path | None = None
    """The file whose frames these are; an absolute path."""

    span: Span = WHOLE_VIDEO
    """The part of `video` that belongs to the sequence."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the sequence is made of."""
        return self.frames if self.video is None else (self.video,)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Something in the tree that is not a labelled sequence, with the reason in words."""

    path: Path
    reason: str
    part: str = ""
    """Which part of the file it is, such as `line 7` of a list; empty for all of it."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset as found on disk: every file and folder belongs to a sequence or is among the skipped."""

    name: str
    """The folder of its caches: lower case letters, digits, hyphens."""

    classes: tuple[str, ...]
    """Class names in the order of their label numbers (0, 1, ...)."""

    sequences: tuple[FrameSequence, ...]
    """Ordered by clip id."""

    skipped: tuple[Skipped, ...] = ()
    """A folder stands for all that is in it."""

    warnings: tuple[str, ...] = ()
    colour: bool = False
    """Whether clips keep their colours; otherwise every frame is decoded to gray."""

    settings: Mapping[str, str] = field(default_factory=dict)
    """What the reader was asked for, for the record."""

    def reasons(self, root: Path) -> dict[str, str]:
        """What was left out, as a path relative to `root` (with its part), each with its reason."""
        found: dict[str, str] = {}
        for skip in self.skipped:
            where = as_text(os.path.relpath(skip.path, root).replace(os.sep, "/"))
            where = f"{where} {skip.part}" if skip.part else where
            found[where] = f"{found[where]}; {skip.reason}" if where in found else skip.reason
        return found


def as_text(name: str) -> str:
    """A file's name or path as text that can be stored and shown, the same on every machine.

    Bytes that are not UTF-8 and characters that cannot be shown become backslash escapes; letters with
    accents are composed, since some file systems store them in two parts.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in unicodedata.normalize("NFC", text)
    )


def completeness_warnings(
    sequences: Iterable[FrameSequence], *, name: str, subjects: int, counts: Mapping[str, int]
) -> tuple[str, ...]:
    """A warning that lists what tells these sequences from the complete set; none where nothing does.

    Args:
        name: of the genuine set, as people call it.
        subjects: of the complete set.
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
        f"{there} {what} instead of {complete}" for what, there, complete in pairs if there != complete
    ]
    return (f"This is not the complete {name} set: {', '.join(differing)}.",) if differing else ()


def first_few(clip_ids: list[str]) -> str:
    """A few of these clips by name, for a warning."""
    return ", ".join(clip_ids[:5]) + (", ..." if len(clip_ids) > 5 else "")
