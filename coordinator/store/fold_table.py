"""What the pruning rules ask of a study's folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from coordinator.fold_order import order_of
from coordinator.pruning import FoldTable, MedianTrial
from coordinator.store.queries import confusion_counts, fold_counts
from coordinator.store.tables import ResultRow, StudyFoldRow, StudyRow, TrialRow
from services.contracts import TrialState
from services.scores import Counts


def fold_table(session: Session, study: StudyRow, trial: TrialRow, row: ResultRow) -> FoldTable:
    """The folds of a study as they are, for a trial of it that is judged with a result not stored yet."""
    return FoldTable(
        complete_at_step=lambda step: _complete_at_step(session, study, trial, step),
        median_trial=lambda: _median_trial(session, study, trial),
        confusion=lambda: _confusion(session, study, trial, row),
    )


def _complete_at_step(session: Session, study: StudyRow, trial: TrialRow, step: int) -> list[float]:
    accuracies = session.execute(
        select(func.sum(ResultRow.correct), func.sum(ResultRow.clips))
        .join(TrialRow, TrialRow.id == ResultRow.trial_id)
        .where(*_complete_in_same_order(trial), ResultRow.fold.in_(order_of(session, study, trial)[:step]))
        .group_by(ResultRow.trial_id)
    ).all()
    return [int(correct) / int(clips) for correct, clips in accuracies]


def _median_trial(session: Session, study: StudyRow, trial: TrialRow) -> MedianTrial | None:
    complete = _complete_in_same_order(trial)
    count = session.scalar(select(func.count()).select_from(TrialRow).where(*complete)) or 0
    if count == 0:
        return None
    middle = session.scalars(
        select(TrialRow)
        .where(*complete)
        .order_by(TrialRow.value, TrialRow.number)
        .offset((count - 1) // 2)
        .limit(1)
    ).one()
    folds = {fold.fold: (fold.correct, fold.clips) for fold in fold_counts(session, [middle.id])[middle.id]}
    return MedianTrial(
        number=middle.number,
        complete_trials=count,
        folds=[folds[index] for index in order_of(session, study, trial)],
    )


def _confusion(
    session: Session, study: StudyRow, trial: TrialRow, row: ResultRow
) -> tuple[Counts, Sequence[int]]:
    counts = confusion_counts(session, study, trial) + np.asarray(row.confusion, dtype=np.int64)
    to_come = [-int(done) for done in counts.sum(axis=1)]
    for labels in session.scalars(select(StudyFoldRow.labels).where(StudyFoldRow.study_id == study.id)):
        for label in labels:
            to_come[label] += 1
    return counts, to_come


def _complete_in_same_order(trial: TrialRow) -> tuple[ColumnElement[bool], ...]:
    return (
        TrialRow.study_id == trial.study_id,
        TrialRow.state == TrialState.COMPLETE,
        TrialRow.learnt_order.is_(trial.learnt_order),
    )
