"""The readings of "the best epoch": the scores of one trial under every choice of the epoch that counts.

The paper reports "the results of the best epoch" (section 3.1), which can be read as each fold's own best epoch
or as one for all folds. The last epoch is the reading that no test clip has chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services import scores
from services.contracts import Reading
from services.contracts.base import EpochChoice, Objective
from services.running_scores import FoldEpochs, at_every_epoch, running_scores


@dataclass(frozen=True, kw_only=True)
class PredictedFold:
    """The predictions of a finished fold."""

    labels: Sequence[int]
    """True label of each test clip."""

    epochs: Sequence[Sequence[int]]
    """For each epoch the predicted label of each test clip, in the same order."""

    trained: bool
    """Whether the first epoch had a finite loss; if not, nothing was learnt."""

    whole: bool
    """Whether it ran as long as it could: all its epochs, or until it diverged."""

    validation_epoch: int | None
    """Best epoch on its validation clips, from 0; None without such clips."""


def readings(
    folds: Sequence[PredictedFold],
    classes: int,
    objective: Objective,
    *,
    counts: EpochChoice,
    common_epoch: int | None,
    complete: bool,
) -> tuple[Reading, ...]:
    """The scores of a trial under each choice of the epoch, pooled over its folds.

    Args:
        folds: the finished folds of the trial; at least one.
        classes: number of classes.
        objective: chooses the best epoch for all folds.
        counts: the choice of the trial's study.
        common_epoch: the best epoch for all folds, from 0, if the study chose it; None: the best over `folds`.
        complete: whether these are all folds of the trial. If not, best common and last epoch are given only if
            they count.
    """
    per_fold = [at_every_epoch(fold.labels, fold.epochs, classes) for fold in folds]
    counted = [
        whole
        if fold.trained
        else at_every_epoch(
            fold.labels,
            scores.epochs_that_count(fold.labels, fold.epochs, classes, trained=False),
            classes,
        )
        for fold, whole in zip(folds, per_fold, strict=True)
    ]
    best = [int(np.argmax(fold.correct)) for fold in per_fold]
    found = [_reading("best_per_fold", per_fold, best, None)]
    short = sum(not fold.whole for fold in folds)
    common = running_scores(counted, objective)[-1].epoch if common_epoch is None else common_epoch
    last = max(len(fold.correct) for fold in counted) - 1
    of_all_folds: tuple[tuple[EpochChoice, int], ...] = (("best_common", common), ("last", last))
    for choice, epoch in of_all_folds:
        if short:
            why = f"{short} of {len(folds)} folds ended before their last epoch"
            found.append(_not_recorded(choice, why))
        elif not complete and choice != counts:
            found.append(_not_recorded(choice, "the trial was ended early"))
        else:
            found.append(_reading(choice, counted, [fold.own_epoch(epoch) for fold in counted], epoch + 1))
    validated = [fold.validation_epoch for fold in folds if fold.validation_epoch is not None]
    if len(validated) == len(folds):
        chosen = [fold.own_epoch(epoch) for epoch, fold in zip(validated, counted, strict=True)]
        found.append(_reading("validation", counted, chosen, None))
    return tuple(found)


def _reading(
    choice: EpochChoice, folds: Sequence[FoldEpochs], chosen: Sequence[int], epoch: int | None
) -> Reading:
    counts = np.stack([fold.confusions[at] for fold, at in zip(folds, chosen, strict=True)]).sum(axis=0)
    return Reading(
        choice=choice,
        epoch=epoch,
        correct=int(np.trace(counts)),
        accuracy=scores.accuracy(counts),
        uar=scores.unweighted_average_recall(counts),
        uf1=scores.unweighted_f1(counts),
        not_recorded=None,
    )


def _not_recorded(choice: EpochChoice, why: str) -> Reading:
    return Reading(choice=choice, epoch=None, correct=None, accuracy=None, uar=None, uf1=None, not_recorded=why)
