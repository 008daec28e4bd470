"""What a reader gives: the labelled sequences of a dataset, and what it left out and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One labelled video of one subject, as image files in temporal order."""

    clip_id: str
    """Unique in its dataset and stable over machines, such as `S005_001`."""

    subject: str
    label: str
    """The class name in lower case."""

    frames: tuple[Path, ...]
    """All frames, first to last; absolute paths."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Something in the tree that is not a labelled sequence, with the reason in words."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset as found on disk: every sequence is either here or among the skipped."""

    name: str
    classes: tuple[str, ...]
    """Class names in the order of their label numbers (0, 1, ...)."""

    sequences: tuple[Sequence, ...]
    """Ordered by clip id."""

    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = field(default=())
