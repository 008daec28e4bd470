"""The order in which a trial runs its folds: by index, or the hardest first once a study has learnt it.

The order is learnt once and frozen in the study's row. A trial takes the study's order with its first fold, or
when it is added if the study has a feedback delay. A trial keeps its order, so both orders can run together.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import structlog
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from coordinator.pruning.knowledge import known_below
from coordinator.store.folds import fold_counts
from coordinator.store.tables import StudyRow, TrialRow
from services.contracts import StudySpec, TrialState

log = structlog.get_logger()

LEARNT_FROM = 5
"""Complete trials from which an order is learnt."""


def is_spared(study: StudyRow, spec: StudySpec, trial: TrialRow) -> bool:
    """Whether no rule may prune a trial, because the study learns its order from trials that run all folds.

    A rule such as `bound` may let no trial complete for a long time; the study would then not learn the order
    with which that rule saves most. With a feedback delay the first trials by number are spared; without one,
    all are until the order is learnt.
    """
    if spec.fold_order == "fixed":
        return False
    return study.fold_order is None if spec.feedback_delay is None else trial.number < LEARNT_FROM


def uses_learnt_order(session: Session, study: StudyRow, spec: StudySpec, number: int) -> bool:
    """Whether the trial of this number, which is being added, runs its folds in the order that is learnt.

    With a feedback delay it does if the trials from which the order is learnt are known to it; the first such
    trial has the order learnt. Without one, the trial takes its order with its first fold.

    The transaction holds the lock of the study.
    """
    below = known_below(spec, number)
    if spec.fold_order == "fixed" or below is None:
        return False
    learn(session, study, TrialRow.number < below)
    return study.fold_order is not None


def learn(session: Session, study: StudyRow, *conditions: ColumnElement[bool]) -> None:
    """Freeze a study's order if it has none yet and enough trials that meet the conditions are complete.

    The transaction holds the lock of the study.
    """
    if study.fold_order is not None:
        return
    complete = session.scalars(
        select(TrialRow.id)
        .where(TrialRow.study_id == study.id, TrialRow.state == TrialState.COMPLETE, *conditions)
        .order_by(TrialRow.number)
        .limit(LEARNT_FROM)
    ).all()
    if len(complete) < LEARNT_FROM:
        return
    counts = fold_counts(session, complete)
    study.fold_order = hardest_first([[(c.correct, c.clips) for c in counts[trial]] for trial in complete])
    session.flush()
    log.info("fold_order_learnt", study=study.name, hardest=study.fold_order[:5])


def hardest_first(trials: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
    """Indices of the folds by their mean accuracy over these trials, the lowest first, equal ones by index.

    Args:
        trials: (correct, clips) of every fold of each trial, by index.
    """

    def accuracy(fold: int) -> Fraction:
        # All trials test the same clips in a fold, so this is the mean of their accuracies.
        return Fraction(sum(trial[fold][0] for trial in trials), sum(trial[fold][1] for trial in trials))

    return sorted(range(len(trials[0])), key=accuracy)


def order_of(session: Session, study: StudyRow, trial: TrialRow) -> Sequence[int]:
    """Indices of the folds in the order in which a trial runs them."""
    if not trial.learnt_order:
        return range(study.fold_count)
    if study.fold_order is None:
        # The study was read before it learnt its order, the trial after.
        session.refresh(study, ["fold_order"])
    return cast("Sequence[int]", study.fold_order)
