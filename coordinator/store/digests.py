"""The digest of a study: equal for two runs that chose, trained and pruned the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from coordinator.store.conditions import among
from coordinator.store.studies import parsed_spec
from coordinator.store.tables import InheritedTrialRow, ResultRow, StudyRow, TrialRow
from coordinator.store.views import enqueued_parameters
from services.contracts import StudyDigest, StudyPlan, StudyState, TrialState
from services.seeds import sha256_of

TRIALS_AT_ONCE = 1000
"""Trials whose hashes are read at once."""


def study_digest(session: Session, study: StudyRow) -> StudyDigest:
    """The digest of the trials that have ended, up to the first that has not.

    It covers what was chosen and what followed. Each trial enters with its number, parameters, state and
    value, the rule and the numbers that ended it, the order of its folds, and the predictions of each fold that
    counts. The study enters with its budget, the configurations that were enqueued, the trials that it
    inherited, and its compute plan. Times, workers, leases and reuse of folds are not in it.
    """
    spec = parsed_spec(study)
    trials = session.scalars(
        select(TrialRow).where(TrialRow.study_id == study.id).order_by(TrialRow.number)
    ).all()
    ended = list(takewhile(lambda trial: TrialState(trial.state).over, trials))
    of_trials: list[str] = []
    for first in range(0, len(ended), TRIALS_AT_ONCE):
        of_trials += _of_trials(session, study, ended[first : first + TRIALS_AT_ONCE])
    inherited = session.execute(
        select(
            InheritedTrialRow.parameters,
            InheritedTrialRow.state,
            InheritedTrialRow.value,
            InheritedTrialRow.curve,
        )
        .where(InheritedTrialRow.study_id == study.id)
        .order_by(InheritedTrialRow.place)
    )
    about = {
        "plan": study.plan,
        "inherited": [list(row) for row in inherited],
        "trials": spec.trials,
        "enqueued": {str(number): given for number, given in enqueued_parameters(session, study.id).items()},
    }
    depends_on = {
        "order": spec.feedback_delay is None,
        "clock": spec.trial_seconds is not None or spec.study_seconds is not None,
        "failures": any(trial.state == TrialState.FAILED for trial in ended),
        "stop": study.state == StudyState.STOPPED,
    }
    return StudyDigest(
        study=study.name,
        digest=sha256_of([about, of_trials]),
        trials=len(of_trials),
        of_trials=tuple(of_trials),
        depends_on=tuple(what for what, depends in depends_on.items() if depends),
        plan=None if study.plan is None else StudyPlan.model_validate(study.plan),
    )


def _of_trials(session: Session, study: StudyRow, trials: Sequence[TrialRow]) -> list[str]:
    # Which folds of a failed or cancelled trial were done is a matter of time.
    judged = [trial for trial in trials if trial.state in {TrialState.COMPLETE, TrialState.PRUNED}]
    folds = func.array_agg(aggregate_order_by(ResultRow.fold, ResultRow.fold))
    predictions = func.array_agg(aggregate_order_by(ResultRow.predictions_sha256, ResultRow.fold))
    rows = session.execute(
        select(ResultRow.trial_id, folds, predictions)
        .where(among(ResultRow.trial_id, [trial.id for trial in judged]), ~ResultRow.beyond_verdict)
        .group_by(ResultRow.trial_id)
    )
    of_folds: dict[int, list[Any]] = {
        trial_id: list(zip(fold, hashes, strict=True)) for trial_id, fold, hashes in rows
    }
    return [
        sha256_of(
            {
                "number": trial.number,
                "parameters": trial.parameters,
                "state": trial.state,
                "order": study.fold_order if trial.learnt_order else None,
                "folds": of_folds.get(trial.id, []),
                "pruned": trial.pruned,
                "value": trial.value,
            }
        )
        for trial in trials
    ]
