"""What a study maximises, over the first folds of a trial; and the epoch at which these folds count.

A fold has counts for one epoch if the epoch is chosen in each fold by itself (`best_per_fold`, `last`,
`validation`), and for all its epochs if one is chosen for all folds together (`best_common`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import truediv

import numpy as np

from services.contracts.base import Objective
from services.scores import Counts, confusions, score


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldEpochs:
    """A finished fold of a trial, with its counts at each epoch that can be chosen."""

    clips: int
    """Its test clips."""

    correct: Sequence[int]
    """Correct clips at each epoch."""

    confusions: Sequence[Counts] | Counts = ()
    """Confusion counts at each epoch; empty where only correct clips are known."""

    def own_epoch(self, epoch: int) -> int:
        """The index at which a fold counts at an epoch. One that diverged before it repeats its last epoch."""
        return min(epoch, len(self.correct) - 1)

    def correct_at(self, epoch: int) -> int:
        """Correct clips at an epoch, from 0."""
        return self.correct[self.own_epoch(epoch)]


@dataclass(frozen=True, kw_only=True)
class RunningScore:
    """The first n folds of a trial."""

    value: float
    """What the study maximises, pooled over these folds at the epoch; 0 to 1."""

    epoch: int
    """Index of the earliest epoch at which that is highest."""


def running_scores(folds: Sequence[FoldEpochs], objective: Objective) -> list[RunningScore]:
    """The score over the first 1, 2, ... of these folds.

    Args:
        folds: in the order in which the trial runs them; with confusion counts unless the objective is
            accuracy.
        objective: what the study maximises.
    """
    if not folds:
        return []
    if objective == "accuracy" and all(len(fold.correct) == 1 for fold in folds):
        correct = accumulate(fold.correct[0] for fold in folds)
        clips = accumulate(fold.clips for fold in folds)
        return [RunningScore(value=value, epoch=0) for value in map(truediv, correct, clips)]
    values = _values(folds, objective)
    # The first of equal values.
    return [RunningScore(value=float(row.max()), epoch=int(row.argmax())) for row in values]


def at_one_epoch(folds: Sequence[tuple[int, int]]) -> list[FoldEpochs]:
    """Folds of which only (correct, clips) at one epoch are known."""
    return [FoldEpochs(clips=clips, correct=(correct,)) for correct, clips in folds]


def at_every_epoch(labels: Sequence[int], epochs: Sequence[Sequence[int]], classes: int) -> FoldEpochs:
    """A fold with its counts at every epoch.

    Args:
        labels: true label of each test clip.
        epochs: for each epoch the predicted label of each test clip, in the same order.
        classes: their number.
    """
    counts = confusions(labels, epochs, classes)
    return FoldEpochs(clips=len(labels), correct=np.trace(counts, axis1=1, axis2=2).tolist(), confusions=counts)


def correct_at_every_epoch(labels: Sequence[int], epochs: Sequence[Sequence[int]]) -> FoldEpochs:
    """The same without confusion counts, which take most of the time."""
    right = (np.asarray(epochs, dtype=np.intp) == np.asarray(labels, dtype=np.intp)).sum(axis=1)
    return FoldEpochs(clips=len(labels), correct=right.tolist())


def counts_at(folds: Sequence[FoldEpochs], epoch: int) -> list[tuple[int, int]]:
    """(correct, clips) of each fold at an epoch, from 0."""
    return [(fold.correct_at(epoch), fold.clips) for fold in folds]


def pooled(folds: Sequence[FoldEpochs]) -> list[Counts]:
    """Confusion counts over all these folds, at each epoch."""
    return list(_every_epoch([np.asarray(fold.confusions) for fold in folds]).sum(axis=0))


def _values(
    folds: Sequence[FoldEpochs], objective: Objective
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Folds x epochs: the score over the folds up to this one."""
    if objective == "accuracy":
        correct = _every_epoch([np.asarray(fold.correct) for fold in folds]).cumsum(axis=0)
        return np.asarray(correct / np.cumsum([fold.clips for fold in folds])[:, None], dtype=np.float64)
    return score(_every_epoch([np.asarray(fold.confusions) for fold in folds]).cumsum(axis=0), objective)


def _every_epoch(folds: Sequence[Counts]) -> Counts:
    """Stack arrays whose first axis is the epoch; shorter ones repeat their last epoch."""
    epochs = np.arange(max(len(fold) for fold in folds))
    return np.stack([fold[np.minimum(epochs, len(fold) - 1)] for fold in folds]).astype(np.int64)
