"""Answers what pruning rules ask about a study's folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sqlalchemy.orm import Session

from coordinator.pruning.complete_trials import accuracies_at_step, middle_trial
from coordinator.store.folds import confusion_counts
from coordinator.store.studies import study_split
from coordinator.store.tables import ResultRow, StudyRow, TrialRow
from services.pruning.rule import FoldTable
from services.scores import Counts


def fold_table(session: Session, study: StudyRow, trial: TrialRow, row: ResultRow) -> FoldTable:
    """The folds of a study, for judging `trial` with the result `row`, which is not stored yet."""
    return FoldTable(
        complete_at_step=lambda step: accuracies_at_step(session, study, trial, step),
        median_trial=lambda: middle_trial(session, study, trial),
        confusion=lambda: _confusion(session, study, trial, row),
    )


def _confusion(
    session: Session, study: StudyRow, trial: TrialRow, row: ResultRow
) -> tuple[Counts, Sequence[int]]:
    counts = confusion_counts(session, study, trial) + np.asarray(row.confusion, dtype=np.int64)
    remaining = [-int(done) for done in counts.sum(axis=1)]
    for split in study_split(session, study):
        for label in split.labels:
            remaining[label] += 1
    return counts, remaining
