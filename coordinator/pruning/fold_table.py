"""Answers what pruning rules ask about a study's folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from sqlalchemy.orm import Session

from coordinator.pruning.complete_trials import ComparedTrials
from coordinator.pruning.fold_order import order_of
from coordinator.pruning.knowledge import known_below
from coordinator.store.fold_epochs import epochs_of_result, fold_epochs
from coordinator.store.studies import parsed_spec, study_split
from coordinator.store.tables import ResultRow, StudyRow, TrialRow
from services.pruning.rule import FoldTable
from services.running_scores import FoldEpochs, pooled
from services.scores import Counts


def fold_table(session: Session, study: StudyRow, trial: TrialRow, row: ResultRow) -> FoldTable:
    """The folds of a study, for judging `trial` with the result `row`, which is not stored yet."""
    spec = parsed_spec(study)
    compared = ComparedTrials(session, study, trial, known_below(spec, trial.number))

    @cache
    def finished() -> Mapping[int, FoldEpochs]:
        new = epochs_of_result(study, spec, study_split(session, study)[row.fold], row)
        return {**fold_epochs(session, study, [trial.id], confusions=True)[trial.id], row.fold: new}

    def confusions(length: int) -> tuple[Sequence[Counts], Sequence[int]]:
        counted = order_of(session, study, trial)[:length]
        remaining = [0] * len(study.classes)
        for split in study_split(session, study):
            if split.fold not in counted:
                for label in split.labels:
                    remaining[label] += 1
        return pooled([finished()[fold] for fold in counted]), remaining

    return FoldTable(
        complete_at_step=compared.at_step,
        median_trial=compared.middle,
        best_trial=compared.best,
        confusions=confusions,
    )
