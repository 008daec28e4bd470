"""Answers what pruning rules ask about a study's folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from sqlalchemy.orm import Session

from coordinator.pruning.complete_trials import ComparedTrials
from coordinator.pruning.fold_order import order_of
from coordinator.pruning.knowledge import known_below
from coordinator.store.folds import confusions_of
from coordinator.store.studies import parsed_spec, study_split
from coordinator.store.tables import ResultRow, StudyRow, TrialRow
from services.pruning.rule import FoldTable
from services.scores import Counts


def fold_table(session: Session, study: StudyRow, trial: TrialRow, row: ResultRow) -> FoldTable:
    """The folds of a study, for judging `trial` with the result `row`, which is not stored yet."""
    confusions = cache(lambda: confusions_of(session, trial) | {row.fold: row.confusion})
    compared = ComparedTrials(session, study, trial, known_below(parsed_spec(study), trial.number))
    return FoldTable(
        complete_at_step=compared.at_step,
        median_trial=compared.middle,
        best_trial=compared.best,
        confusion=lambda length: _confusion(
            session, study, confusions(), order_of(session, study, trial)[:length]
        ),
    )


def _confusion(
    session: Session, study: StudyRow, of_fold: Mapping[int, Sequence[Sequence[int]]], folds: Sequence[int]
) -> tuple[Counts, Sequence[int]]:
    counts = np.asarray([of_fold[fold] for fold in folds], dtype=np.int64).sum(axis=0)
    remaining = [-int(done) for done in counts.sum(axis=1)]
    for split in study_split(session, study):
        for label in split.labels:
            remaining[label] += 1
    return counts, remaining
