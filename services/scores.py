"""Scores from predicted labels: confusion counts, accuracy, UAR, UF1, best epoch, exact bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
"""Confusion counts, classes x classes: row = true class, column = predicted class."""


def confusion(labels: Sequence[int], predicted: Sequence[int], classes: int) -> Counts:
    """Count true label (row) against predicted label (column); int64, `classes` x `classes`."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (np.asarray(labels, dtype=np.intp), np.asarray(predicted, dtype=np.intp)), 1)
    return counts


def accuracy(counts: Counts) -> float:
    """Correct clips over all clips; 0.0 for none."""
    total = int(counts.sum())
    return int(np.trace(counts)) / total if total else 0.0


def unweighted_average_recall(counts: Counts) -> float:
    """Mean recall over the classes that occur (UAR)."""
    per_class = counts.sum(axis=1)
    present = per_class > 0
    return float(np.mean(np.diag(counts)[present] / per_class[present])) if present.any() else 0.0


def unweighted_f1(counts: Counts) -> float:
    """Mean F1 over the classes that occur (UF1)."""
    present = counts.sum(axis=1) > 0
    both = counts.sum(axis=1) + counts.sum(axis=0)
    return float(np.mean(2 * np.diag(counts)[present] / both[present])) if present.any() else 0.0


def best_epoch(labels: Sequence[int], epochs: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The earliest epoch (from 0) with the most correct clips, and how many those are.

    The paper reports "the results of the best epoch" (section 3.1), read as: per fold.

    Args:
        labels: true label of each test clip.
        epochs: for each epoch the predicted label of each test clip, in the same order.
    """
    truth = np.asarray(labels)
    correct = [int((truth == np.asarray(predicted)).sum()) for predicted in epochs]
    best = max(range(len(correct)), key=lambda epoch: (correct[epoch], -epoch))
    return best, correct[best]


def needed_correct(threshold: float, clips: int) -> int:
    """How many of `clips` must be right to reach an accuracy of `threshold`, exactly.

    The decimal that was written counts, not its binary neighbour: 96.5 % of 327 needs 316.
    """
    return math.ceil(Fraction(repr(threshold)) * clips)
