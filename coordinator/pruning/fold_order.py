"""The order in which a trial runs its folds: by index, or the hardest first once a study has learnt it.

The order is learnt once and frozen in the study's row. A trial takes the study's order with its first fold and
keeps it, so trials of both orders can run at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.store.folds import fold_counts
from coordinator.store.studies import lock_study
from coordinator.store.tables import StudyRow, TrialRow
from services.contracts import StudySpec, TrialState

log = structlog.get_logger()

LEARNT_FROM = 5
"""Complete trials from which an order is learnt."""


def still_learning(study: StudyRow, spec: StudySpec) -> bool:
    """Whether no rule may prune yet, because the study learns its order from trials that run all folds.

    A rule such as `bound` may let no trial complete for a long time; the study would then not learn the order
    with which that rule saves most.
    """
    return spec.fold_order == "hardest_first" and study.fold_order is None


def learn(session: Session, study_id: int) -> None:
    """Freeze a study's order if it has none yet and enough trials are complete. Locks the study's row."""
    study = lock_study(session, study_id)
    if study.fold_order is not None:
        return
    complete = session.scalars(
        select(TrialRow.id)
        .where(TrialRow.study_id == study_id, TrialRow.state == TrialState.COMPLETE)
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
