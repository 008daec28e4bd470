"""Scores from predicted labels: confusion counts, accuracy, UAR, UF1, best epoch, exact bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

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


def best_common_epoch(correct: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The earliest epoch (from 0) at which all folds together have the most correct clips, and how many.

    Another reading of "the best epoch": one for all folds. All folds must have run the same epochs.

    Args:
        correct: for each fold its correct clips after each epoch.

    Raises:
        ValueError: no folds, or folds of different lengths.
    """
    totals = np.asarray([list(fold) for fold in correct]).sum(axis=0)
    if totals.ndim != 1 or not len(totals):
        raise ValueError("there is no epoch that all folds have run")
    best = int(totals.argmax())
    return best, int(totals[best])


def needed_correct(threshold: float, clips: int) -> int:
    """How many of `clips` must be right to reach an accuracy of `threshold`, exactly.

    The decimal that was written counts, not its binary neighbour: 96.5 % of 327 needs 316.
    """
    return math.ceil(Fraction(repr(threshold)) * clips)


def best_reachable(counts: Counts, to_come: Sequence[int], metric: Literal["uar", "uf1"]) -> Fraction:
    """The highest UAR or UF1 that clips still to come can lead to, exactly: that with every one of them right.

    Take a class with n true clips in all. Of the clips counted t are right in it and p >= t assigned to it; of
    those to come x are right in it and q >= x assigned to it. Its recall is (t + x) / n. Its F1 is
    2 (t + x) / (n + p + q), at most 2 (t + x) / (n + p + x). Both rise with x, the latter because t < n + p.
    Every clip right makes x as large as it can be, with q = x, in every class at once, so no mean over the
    classes is higher.

    Args:
        counts: confusion counts so far.
        to_come: for each class, how many clips of it are still to come.
    """
    values = []
    for label, coming in enumerate(to_come):
        right = int(counts[label, label]) + coming
        true = int(counts[label].sum()) + coming
        assigned = int(counts[:, label].sum()) + coming
        if true:
            values.append(Fraction(right, true) if metric == "uar" else Fraction(2 * right, true + assigned))
    return sum(values, start=Fraction(0)) / len(values) if values else Fraction(0)
