"""The curves of trials: their running scores over the folds that are finished without a gap."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from sqlalchemy.orm import Session

from coordinator.pruning.fold_order import order_of
from coordinator.store.fold_epochs import fold_epochs
from coordinator.store.studies import parsed_spec
from coordinator.store.tables import StudyRow, TrialRow
from services.running_scores import running_scores


def curves_of(session: Session, study: StudyRow, trials: Sequence[TrialRow]) -> dict[int, Sequence[float]]:
    """The curve of each trial, by its id; see `services.pruning.rule`."""
    objective = parsed_spec(study).objective
    ids = [trial.id for trial in trials]
    finished = fold_epochs(session, study, ids, confusions=objective != "accuracy")
    curves: dict[int, Sequence[float]] = {}
    for trial in trials:
        folds = finished[trial.id]
        prefix = takewhile(folds.__contains__, order_of(session, study, trial))
        running = running_scores([folds[fold] for fold in prefix], objective)
        curves[trial.id] = [step.value for step in running]
    return curves
