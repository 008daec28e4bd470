"""How much there is of everything, for monitoring: a few counts over whole tables."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.store.conditions import is_open, seconds
from coordinator.store.tables import LeaseRow, OutboxRow, ResultRow, StudyRow, TrialRow, WorkerRow
from services.contracts import StudyState, TrialState


@dataclass(frozen=True, kw_only=True)
class ServiceCounts:
    """What the tables hold now, the same whichever coordinator asks."""

    folds_run: int
    """Results that came by a lease."""

    folds_reused: int
    """Results that were counted from a trial with equal parameters."""

    leases_ended: dict[str, int]
    """By outcome."""

    leases_live: int
    trials: dict[tuple[str, TrialState], int]
    """By study and state; every state of every study is there."""

    running: frozenset[str]
    """Names of the studies that run."""

    open_trials: int
    """Ready or running, of studies that run."""

    workers: int
    """Heard of within the time that was asked for."""

    outbox: int
    """Changes that Optuna has not heard of."""


def service_counts(session: Session, *, seen_within: float) -> ServiceCounts:
    """Count everything; workers only if heard of in the last `seen_within` seconds."""
    results, reused = session.execute(select(func.count(), func.count(ResultRow.reused_from))).one()
    live = select(func.count()).select_from(LeaseRow).where(LeaseRow.outcome.is_(None))
    ended = session.execute(
        select(LeaseRow.outcome, func.count()).where(LeaseRow.outcome.is_not(None)).group_by(LeaseRow.outcome)
    )
    outcomes = {str(outcome): count for outcome, count in ended}
    trials = {(name, state): 0 for name in session.scalars(select(StudyRow.name)) for state in TrialState}
    for name, state, count in session.execute(
        select(StudyRow.name, TrialRow.state, func.count())
        .join(TrialRow, TrialRow.study_id == StudyRow.id)
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
        trials=trials,
        running=frozenset(running),
        open_trials=open_trials or 0,
        workers=workers or 0,
        outbox=outbox or 0,
    )
