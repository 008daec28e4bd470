"""Trials: adding, ending and cancelling them, and completing their study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from sqlalchemy import (
    JSON,
    func,
    literal,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from coordinator.events import publish
from coordinator.pruning.fold_order import uses_learnt_order
from coordinator.scheduling.leases import end_lease, lock_trial
from coordinator.store.appends import outbox_row
from coordinator.store.conditions import is_open, seconds
from coordinator.store.studies import lock_study, parsed_spec
from coordinator.store.tables import (
    FoldRow,
    LeaseRow,
    StudyRow,
    TrialRow,
)
from services.contracts import (
    EventKind,
    FoldState,
    StudyState,
    TrialState,
)
from services.seeds import sha256_of

log = structlog.get_logger()


def add_trial(session: Session, study: StudyRow, parameters: dict[str, Any], number: int) -> TrialRow | None:
    """Add a ready trial with its folds, unless the study's budget is spent or the number is taken.

    Locks the study's row, so that two callers cannot exceed the budget together, and no caller adds a trial to
    a study that has ended.
    """
    study = lock_study(session, study.id)
    if study.state != StudyState.RUNNING:
        return None
    spec = parsed_spec(study)
    count = session.scalar(select(func.count()).select_from(TrialRow).where(TrialRow.study_id == study.id))
    if count != number or number >= spec.trials:
        return None
    trial = TrialRow(
        study_id=study.id,
        number=number,
        parameters=parameters,
        parameters_hash=sha256_of(parameters),
        state=TrialState.READY,
        learnt_order=uses_learnt_order(session, study, spec, number),
    )
    session.add(trial)
    session.flush()
    index = func.generate_series(0, study.fold_count - 1).column_valued("index")
    folds = select(literal(trial.id), index, literal(FoldState.PENDING.value), literal(0))
    session.execute(insert(FoldRow).from_select(["trial_id", "fold", "state", "term"], folds))
    enqueue_projection(session, trial)
    return trial


def cancel_trial(session: Session, trial_id: int, reason: str) -> None:
    """Cancel a trial and its leases if it has not ended. Use one transaction for each trial."""
    trial = lock_trial(session, trial_id)
    if not TrialState(trial.state).over:
        end_trial(session, trial, TrialState.CANCELLED, reason)


def overdue_trials(session: Session) -> Sequence[tuple[int, int, str]]:
    """Running trials that are past their study's `trial_seconds`: id, study's id and the reason to cancel.

    The time of a trial counts from its first lease and includes pauses.
    """
    limit = type_coerce(StudyRow.spec, JSON)["trial_seconds"].as_float()
    begun = select(func.min(LeaseRow.granted_at)).where(LeaseRow.trial_id == TrialRow.id).scalar_subquery()
    overdue = session.execute(
        select(TrialRow.id, TrialRow.study_id, limit)
        .join(StudyRow, StudyRow.id == TrialRow.study_id)
        .where(
            StudyRow.state == StudyState.RUNNING,
            limit.is_not(None),
            TrialRow.state == TrialState.RUNNING,
            begun < func.clock_timestamp() - seconds(limit),
        )
        .order_by(TrialRow.id)
    )
    return [
        (trial_id, study_id, f"trial_seconds: {allowed:g} s since its first lease")
        for trial_id, study_id, allowed in overdue
    ]


def complete_if_done(session: Session, study_id: int) -> None:
    """Complete a running or paused study if all trials of its budget have ended."""
    study = lock_study(session, study_id)
    if study.state not in {StudyState.RUNNING, StudyState.PAUSED}:
        return
    of_study = select(TrialRow.id).where(TrialRow.study_id == study_id)
    if session.scalar(of_study.where(is_open()).limit(1)) is not None:
        return
    total = session.scalar(select(func.count()).select_from(of_study.subquery())) or 0
    if total < parsed_spec(study).trials:
        return
    study.state = StudyState.COMPLETE
    publish(session, study.id, EventKind.STUDY_MOVED, state=StudyState.COMPLETE.value, reason=None)
    log.info("study_complete", study=study.name, trials=total)


def end_trial(session: Session, trial: TrialRow, state: TrialState, reason: str | None) -> None:
    """End a trial and its live leases, publish its end, and complete its study if it was the last trial."""
    trial.state = state
    trial.end_reason = reason
    for lease in session.scalars(
        select(LeaseRow).where(LeaseRow.trial_id == trial.id, LeaseRow.outcome.is_(None))
    ):
        end_lease(session, lease, "abandoned")
    session.flush()
    session.execute(update(TrialRow).where(TrialRow.id == trial.id).values(ended_at=func.clock_timestamp()))
    publish(
        session,
        trial.study_id,
        EventKind.TRIAL_ENDED,
        trial=trial.number,
        state=state.value,
        value=trial.value,
        reason=reason,
    )
    enqueue_projection(session, trial)
    complete_if_done(session, trial.study_id)


def enqueue_projection(session: Session, trial: TrialRow) -> None:
    """Mark a trial in the outbox, so that the leader projects it to Optuna."""
    session.execute(outbox_row(trial.id))
