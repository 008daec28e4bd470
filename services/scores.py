"""Scores from predicted labels: confusion counts, accuracy, UAR, UF1, best epoch, exact bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.contracts.base import Objective

Counts = NDArray[np.int64]
"""Confusion counts, classes x classes: row = true class, column = predicted class."""


def confusion(labels: Sequence[int], predicted: Sequence[int], classes: int) -> Counts:
    """Count true label (row) against predicted label (column); int64, `classes` x `classes`."""
    cells = np.asarray(labels, dtype=np.intp) * classes + np.asarray(predicted, dtype=np.intp)
    return np.bincount(cells, minlength=classes * classes).astype(np.int64).reshape(classes, classes)


def confusions(labels: Sequence[int], epochs: Sequence[Sequence[int]], classes: int) -> Counts:
    """Confusion counts of each epoch; int64, epochs x `classes` x `classes`. See `confusion`."""
    cells = np.asarray(labels, dtype=np.intp) * classes + np.asarray(epochs, dtype=np.intp)
    cells += np.arange(len(epochs), dtype=np.intp)[:, None] * classes * classes
    counts = np.bincount(cells.ravel(), minlength=len(epochs) * classes * classes)
    return counts.astype(np.int64).reshape(len(epochs), classes, classes)


def accuracy(counts: Counts) -> float:
    """Correct clips over all clips; 0.0 for none."""
    return float(score(counts, "accuracy"))


def unweighted_average_recall(counts: Counts) -> float:
    """Mean recall over the classes that occur (UAR); 0.0 if none does."""
    return float(score(counts, "uar"))


def unweighted_f1(counts: Counts) -> float:
    """Mean F1 over the classes that occur (UF1); 0.0 if none does."""
    return float(score(counts, "uf1"))


def score(counts: Counts, objective: Objective) -> NDArray[np.float64]:
    """Accuracy, UAR or UF1 of many confusion matrices at once, each 0.0 where no clip is counted.

    Args:
        counts: ... x classes x classes.
        objective: which score.

    Returns:
        One number (0 to 1) for each matrix.
    """
    correct, true = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1)
    if objective == "accuracy":
        return _share(correct.sum(axis=-1), true.sum(axis=-1))
    of_class = _share(correct, true) if objective == "uar" else _share(2 * correct, true + counts.sum(axis=-2))
    # A class that occurs only among the predictions has no recall; its F1 would be 0.
    present = true > 0
    return _share(np.where(present, of_class, 0.0).sum(axis=-1), present.sum(axis=-1))


def epochs_that_count(
    labels: Sequence[int], epochs: Sequence[Sequence[int]], classes: int, *, trained: bool
) -> Sequence[Sequence[int]]:
    """The predictions of a fold after each epoch; if nothing was learnt, one epoch with all clips wrong.

    A loss that is not finite in the first epoch leaves a network that predicts the same for everything. Only
    `best_per_fold` counts its predictions.

    Args:
        labels: true label of each test clip.
        epochs: for each epoch the predicted label of each test clip, in the same order.
        classes: their number.
        trained: whether the first epoch had a finite loss.
    """
    return epochs if trained else [tuple((label + 1) % classes for label in labels)]


def best_epoch(labels: Sequence[int], epochs: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The earliest epoch (from 0) with the most correct clips, and their number.

    The paper reports "the results of the best epoch" (section 3.1), read as: per fold.

    Args:
        labels: true label of each test clip.
        epochs: for each epoch the predicted label of each test clip, in the same order.
    """
    correct = (np.asarray(epochs) == np.asarray(labels)).sum(axis=1)
    # The first of equal numbers.
    best = int(correct.argmax())
    return best, int(correct[best])


def best_common_epoch(correct: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The earliest epoch (from 0) at which all folds together have the most correct clips, and their number.

    Another reading of "the best epoch": one for all folds. All folds must have run the same epochs.

    Args:
        correct: for each fold the number of correct clips after each epoch.

    Raises:
        ValueError: no folds, or folds of different lengths.
    """
    totals = np.asarray([list(fold) for fold in correct]).sum(axis=0)
    if totals.ndim != 1 or not len(totals):
        raise ValueError("there is no epoch that all folds have run")
    best = int(totals.argmax())
    return best, int(totals[best])


def needed_correct(threshold: float, clips: int) -> int:
    """The exact number of `clips` that must be correct for an accuracy of `threshold` (0 to 1).

    The decimal as it was written counts, not its binary approximation: 96.5 % of 327 clips are 316.
    """
    return math.ceil(Fraction(repr(threshold)) * clips)


def best_reachable(counts: Counts, remaining: Sequence[int], metric: Objective) -> Fraction:
    """The highest score that the remaining clips can lead to, exactly: the one with all of them correct.

    For accuracy that is plain; for UAR and UF1 it has a reason.

    Take a class with n true clips in total. Among the counted clips, t are correct in it and p >= t are
    predicted as it; among the remaining clips, x are correct in it and q >= x are predicted as it. Its recall
    is (t + x) / n. Its F1 is 2 (t + x) / (n + p + q), at most 2 (t + x) / (n + p + x). Both rise with x, the
    latter because t < n + p. If every remaining clip is correct, x is as large as possible and q = x, in every
    class at once, so no mean over the classes is higher.

    Args:
        counts: confusion counts so far, int64, classes x classes.
        remaining: number of remaining clips of each class.
        metric: which score.
    """
    if metric == "accuracy":
        coming = sum(remaining)
        clips = int(counts.sum()) + coming
        return Fraction(int(np.trace(counts)) + coming, clips) if clips else Fraction(0)
    values = []
    for label, coming in enumerate(remaining):
        correct = int(counts[label, label]) + coming
        true = int(counts[label].sum()) + coming
        predicted = int(counts[:, label].sum()) + coming
        if true:
            values.append(
                Fraction(correct, true) if metric == "uar" else Fraction(2 * correct, true + predicted)
            )
    return sum(values, start=Fraction(0)) / len(values) if values else Fraction(0)


def _share(part: NDArray[Any], whole: Counts) -> NDArray[np.float64]:
    return np.asarray(part / np.maximum(whole, 1), dtype=np.float64)
