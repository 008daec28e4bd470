"""Counts over whole tables, for monitoring."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Float, cast, distinct, func, select
from sqlalchemy.orm import Session

from coordinator.store.conditions import is_open, seconds
from coordinator.store.leadership import fails_repeatedly
from coordinator.store.tables import (
    FailingDutyRow,
    LeaseRow,
    OutboxRow,
    ResultRow,
    StudyRow,
    TrialRow,
    WorkerRow,
)
from services.contracts import StudyState, TrialState


@dataclass(frozen=True, kw_only=True)
class ServiceCounts:
    """Contents of the tables now; every coordinator gets the same."""

    folds_run: int
    """Results that were reported for a lease, here or before an import."""

    folds_reused: int
    """Results that were counted from a trial with equal parameters."""

    leases_ended: dict[str, int]
    """By outcome."""

    leases_live: int
    lease_overdue_seconds: float
    """How long ago the longest expired lease expired that nobody has ended; 0 if there is none."""

    studies_failing: int
    """Studies for which a duty of the leader fails again and again."""

    trials: dict[tuple[str, TrialState], int]
    """By study and state, with a count for every state of every study that is not over."""

    running: frozenset[str]
    """Names of the running studies."""

    open_trials: int
    """Ready or running trials of running studies."""

    workers: int
    """Workers that made contact within `seen_within`."""

    outbox: int
    """Changes that are not projected to Optuna yet."""


def service_counts(session: Session, *, seen_within: float) -> ServiceCounts:
    """Count everything; workers only if they made contact in the last `seen_within` seconds."""
    results, reused = session.execute(select(func.count(), func.count(ResultRow.reused_from))).one()
    live = select(func.count()).select_from(LeaseRow).where(LeaseRow.outcome.is_(None))
    age = func.clock_timestamp() - func.min(LeaseRow.expires_at)
    overdue = select(cast(func.extract("epoch", age), Float(53))).where(LeaseRow.outcome.is_(None))
    failing = select(func.count(distinct(FailingDutyRow.study_id))).where(fails_repeatedly())
    ended = session.execute(
        select(LeaseRow.outcome, func.count()).where(LeaseRow.outcome.is_not(None)).group_by(LeaseRow.outcome)
    )
    outcomes = {str(outcome): count for outcome, count in ended}
    unfinished = StudyRow.state.in_([state for state in StudyState if not state.over])
    names = session.scalars(select(StudyRow.name).where(unfinished))
    trials = {(name, state): 0 for name in names for state in TrialState}
    for name, state, count in session.execute(
        select(StudyRow.name, TrialRow.state, func.count())
        .join(TrialRow, TrialRow.study_id == StudyRow.id)
        .where(unfinished)
        .group_by(StudyRow.name, TrialRow.state)
    ):
        trials[name, TrialState(state)] = count
    running = session.scalars(select(StudyRow.name).where(StudyRow.state == StudyState.RUNNING)).all()
    open_trials = session.scalar(
        select(func.count())
        .select_from(TrialRow)
        .join(StudyRow, StudyRow.id == TrialRow.study_id)
        .where(StudyRow.state == StudyState.RUNNING, is_open())
    )
    since = func.clock_timestamp() - seconds(seen_within)
    workers = session.scalar(select(func.count()).select_from(WorkerRow).where(WorkerRow.last_seen > since))
    outbox = session.scalar(select(func.count()).select_from(OutboxRow))
    return ServiceCounts(
        folds_run=results - reused,
        folds_reused=reused,
        leases_ended=outcomes,
        leases_live=session.scalar(live) or 0,
        lease_overdue_seconds=max(0.0, session.scalar(overdue) or 0.0),
        studies_failing=session.scalar(failing) or 0,
        trials=trials,
        running=frozenset(running),
        open_trials=open_trials or 0,
        workers=workers or 0,
        outbox=outbox or 0,
    )
