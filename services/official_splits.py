"""The split that a dataset gives itself: names of its folds, its three parts, and subjects on two sides."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Part = Literal["train", "validation", "test"]
"""A part of a split."""

MAX_FOLD_NAME_CHARACTERS = 100
"""Maximum characters of a fold's name."""

_PART_OF: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
}
"""Usual spellings of the parts, in lower case."""

_WHOLE_NUMBER = re.compile(r"([0-9]{1,9})(?:[.,]0{1,9})?")
"""A number as lists write it; spreadsheets and pandas add a fraction of zeros."""


def read_part(text: str) -> Part | None:
    """The part of a split that a list names in its own spelling, in any case; None for anything else."""
    return _PART_OF.get(text.strip().casefold())


def read_fold_name(text: str) -> str:
    """The name of a fold as it is stored: `3`, `03` and `3.0` are the same fold."""
    number = _WHOLE_NUMBER.fullmatch(text.strip())
    return text.strip() if number is None else str(int(number[1]))


def natural_order(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key in which numbers count as numbers: `2` comes before `10`, and `a2` before `a10`."""
    parts = re.split(r"([0-9]+)", name)
    # Every second part is a number, so numbers are compared only with numbers. The name itself breaks ties.
    return (*((int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)), (0, name))


def find_leak(clips: Iterable[tuple[str, str, str]]) -> str | None:
    """The first subject that is on two sides of a split, with a clip of each side; None if there is none.

    Args:
        clips: clip id, subject and side of each clip.

    Returns:
        Words such as `subject anna is in train (clip a) and in test (clip b)`.
    """
    seen: dict[str, tuple[str, str]] = {}
    for clip_id, subject, side in sorted(clips):
        other_side, other = seen.setdefault(subject, (side, clip_id))
        if side != other_side:
            return f"subject {subject} is in {other_side} (clip {other}) and in {side} (clip {clip_id})"
    return None
