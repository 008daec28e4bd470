"""Leases: their keys, the check that a lease is current, heartbeats, and their end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest
from typing import Literal

import structlog
from sqlalchemy import (
    JSON,
    ColumnElement,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    select,
    true,
    type_coerce,
    update,
)
from sqlalchemy.orm import Session, aliased, defer, load_only

from coordinator.settings import CoordinatorSettings
from coordinator.store.conditions import seconds
from coordinator.store.folds import FoldCount
from coordinator.store.tables import (
    FoldRow,
    LeaseRow,
    ResultRow,
    StudyRow,
    TrialRow,
    WorkerRow,
)
from services.contracts import (
    FoldState,
    Heartbeat,
    HeartbeatReply,
    TrialState,
)
from services.errors import (
    LeaseSuperseded,
    NotFound,
    TokenRefused,
)

log = structlog.get_logger()

# Not parameters: a prepared plan can then use the index of the folds that are not done.
PENDING: ColumnElement[str] = literal_column(f"'{FoldState.PENDING.value}'")
FAILED: ColumnElement[str] = literal_column(f"'{FoldState.FAILED.value}'")
"""The states as they stand in SQL."""

Outcome = Literal["done", "lapsed", "released", "environment", "trial", "abandoned", "superseded"]
"""How a lease can end; `lapsed` is stored for one that expired."""

_LOCK_BY_LEASE = (
    select(TrialRow.id)
    .where(
        TrialRow.id == select(LeaseRow.trial_id).where(LeaseRow.id == bindparam("lease_id")).scalar_subquery()
    )
    .with_for_update()
)
_Done, _Equal = aliased(ResultRow), aliased(TrialRow)
_Pending, _Failed = aliased(FoldRow), aliased(FoldRow)
_HELD = (
    select(
        LeaseRow,
        TrialRow,
        FoldRow,
        ResultRow,
        StudyRow,
        WorkerRow,
        select(type_coerce(func.json_agg(func.json_build_array(_Done.fold, _Done.correct, _Done.clips)), JSON))
        .where(_Done.trial_id == LeaseRow.trial_id)
        .scalar_subquery(),
        select(type_coerce(func.json_agg(func.json_build_array(_Pending.fold, _Pending.term)), JSON))
        # The fold of an expired lease is pending too, and this call's late result makes it done.
        .where(
            _Pending.trial_id == LeaseRow.trial_id,
            _Pending.fold != LeaseRow.fold,
            _Pending.state == PENDING,
        )
        .scalar_subquery(),
        select(type_coerce(func.json_agg(_Failed.fold), JSON))
        .where(_Failed.trial_id == LeaseRow.trial_id, _Failed.state == FAILED)
        .scalar_subquery(),
        exists().where(
            _Equal.study_id == TrialRow.study_id,
            _Equal.parameters_hash == TrialRow.parameters_hash,
            _Equal.id != TrialRow.id,
        ),
    )
    .join(TrialRow, TrialRow.id == LeaseRow.trial_id)
    .join(FoldRow, and_(FoldRow.trial_id == LeaseRow.trial_id, FoldRow.fold == LeaseRow.fold))
    .outerjoin(ResultRow, and_(ResultRow.trial_id == FoldRow.trial_id, ResultRow.fold == FoldRow.fold))
    .join(StudyRow, StudyRow.id == TrialRow.study_id)
    .join(WorkerRow, WorkerRow.id == LeaseRow.worker_id)
    .where(LeaseRow.id == bindparam("lease_id"))
    # Columns that no call on a lease needs are not read, because each costs time.
    .options(
        load_only(
            LeaseRow.trial_id,
            LeaseRow.fold,
            LeaseRow.term,
            LeaseRow.secret,
            LeaseRow.worker_id,
            LeaseRow.outcome,
            LeaseRow.message,
            LeaseRow.step,
        ),
        load_only(ResultRow.lease_id, ResultRow.sha256, ResultRow.verdict),
        load_only(WorkerRow.name, WorkerRow.device, WorkerRow.drain),
        defer(StudyRow.reason),
        defer(StudyRow.started_at),
        defer(TrialRow.created_at),
        defer(TrialRow.ended_at),
    )
    .execution_options(populate_existing=True)
)


@dataclass(frozen=True, kw_only=True)
class LeaseKey:
    """What a worker sends with every call on its lease."""

    id: str
    term: int
    secret: str


@dataclass(frozen=True, kw_only=True)
class HeldLease:
    """A lease and the rows that a call on it needs, read while its trial is locked."""

    lease: LeaseRow
    trial: TrialRow
    fold: FoldRow
    result: ResultRow | None
    study: StudyRow
    worker: WorkerRow
    done: Sequence[FoldCount]
    """Finished folds of the trial."""

    pending: dict[int, int]
    """The last term of each other pending fold of the trial."""

    failed: frozenset[int]
    """Failed folds of the trial."""

    has_equals: bool
    """Whether the study has other trials with equal parameters."""


def heartbeat(
    session: Session, key: LeaseKey, beat: Heartbeat, settings: CoordinatorSettings
) -> HeartbeatReply:
    """Renew a lease whose worker makes progress, and reply with what the worker should do.

    A lease whose step counter stays the same for longer than `settings.stall_seconds` is not renewed. A lease
    that expired becomes live again if its fold was not granted again.

    Raises:
        NotFound, TokenRefused: no such lease, or not its term and secret.
    """
    held = authorise(session, key)
    lease, trial = held.lease, held.trial
    session.execute(
        update(WorkerRow).where(WorkerRow.id == lease.worker_id).values(last_seen=func.clock_timestamp())
    )
    try:
        check_current(held)
    except LeaseSuperseded:
        return HeartbeatReply(command="abandon", lease_seconds=0)
    if lease.outcome not in {None, "lapsed"}:
        return HeartbeatReply(command="abandon", lease_seconds=0)
    if held.worker.drain == "now":
        return HeartbeatReply(command="drain", lease_seconds=0)
    moved = lease.step != beat.step
    renewed = session.execute(
        update(LeaseRow)
        .where(LeaseRow.id == lease.id)
        .where(true() if moved else LeaseRow.step_at > func.clock_timestamp() - seconds(settings.stall_seconds))
        .values(
            expires_at=func.clock_timestamp() + seconds(settings.lease_seconds),
            outcome=None,
            ended_at=None,
            epoch=beat.epoch,
            step=beat.step,
            step_at=func.clock_timestamp() if moved else LeaseRow.step_at,
        )
        .returning(LeaseRow.id)
    ).scalar()
    if renewed is None:
        log.warning("lease_stalled", lease=lease.id, trial=trial.number, fold=lease.fold, step=beat.step)
        return HeartbeatReply(command="continue", lease_seconds=0)
    session.execute(
        update(FoldRow)
        .where(FoldRow.trial_id == trial.id, FoldRow.fold == lease.fold)
        .values(state=FoldState.LEASED)
    )
    return HeartbeatReply(command="continue", lease_seconds=settings.lease_seconds)


def release(session: Session, key: LeaseKey) -> None:
    """Release the fold of a worker that shuts down: the fold is pending again, and this is no failure of it.

    Raises:
        NotFound, TokenRefused: no such lease, or not its term and secret.
    """
    held = authorise(session, key)
    if held.lease.outcome is None:
        end_lease(session, held.lease, "released")
        log.info("fold_released", trial=held.trial.number, fold=held.lease.fold)


def abandon_leases(session: Session, study: StudyRow) -> None:
    """End the live leases of a study; their workers learn it from the reply to their next call."""
    of_study = select(TrialRow.id).where(TrialRow.study_id == study.id)
    end_leases(session, LeaseRow.trial_id.in_(of_study), "abandoned")


def authorise(session: Session, key: LeaseKey) -> HeldLease:
    """Lock the trial of a lease and read what a call on the lease needs.

    Raises:
        NotFound: there is no such lease.
        TokenRefused: the key has another term or secret.
    """
    if session.execute(_LOCK_BY_LEASE, {"lease_id": key.id}).one_or_none() is None:
        raise NotFound(f"there is no lease {key.id}", field="lease")
    # Read after the lock: before it, other transactions may have changed all of these rows.
    held = session.execute(_HELD, {"lease_id": key.id}).one()
    lease, trial, fold, result, study, worker, done, pending, failed, has_equals = held
    if lease.term != key.term or not compare_digest(lease.secret.encode(), key.secret.encode()):
        raise TokenRefused(f"term or secret of lease {key.id} is wrong", field="lease")
    return HeldLease(
        lease=lease,
        trial=trial,
        fold=fold,
        result=result,
        study=study,
        worker=worker,
        done=[FoldCount(fold=fold, correct=correct, clips=clips) for fold, correct, clips in done or ()],
        pending=dict(pending or ()),
        failed=frozenset(failed or ()),
        has_equals=has_equals,
    )


def check_current(held: HeldLease) -> None:
    """Reject a call on a lease that no longer counts: the fence.

    Raises:
        LeaseSuperseded: the trial has ended, the fold is counted, or it was granted again.
    """
    lease, trial, fold = held.lease, held.trial, held.fold
    if TrialState(trial.state).over:
        raise LeaseSuperseded(f"trial {trial.number} is already {trial.state}")
    if fold.state == FoldState.DONE:
        raise LeaseSuperseded(f"fold {lease.fold} of trial {trial.number} is already counted")
    if fold.term != lease.term or lease.outcome == "superseded":
        raise LeaseSuperseded(
            f"fold {lease.fold} of trial {trial.number} was granted again in term {fold.term}"
        )


def end_leases(session: Session, which: ColumnElement[bool], outcome: Outcome) -> None:
    """End the live leases that `which` selects, each under its trial's lock."""
    live = select(LeaseRow).where(which, LeaseRow.outcome.is_(None)).order_by(LeaseRow.trial_id)
    for lease in session.scalars(live).all():
        lock_trial(session, lease.trial_id)
        # Before this transaction had the lock, the lease may have ended and its fold been granted again.
        session.refresh(lease)
        if lease.outcome is None:
            end_lease(session, lease, outcome)


def end_lease(session: Session, lease: LeaseRow, outcome: Outcome) -> None:
    """End one lease whose trial is locked; its fold is pending again."""
    session.flush()
    session.execute(
        update(LeaseRow)
        .where(LeaseRow.id == lease.id)
        .values(outcome=outcome, ended_at=func.clock_timestamp(), message=lease.message)
    )
    session.execute(
        update(FoldRow)
        .where(
            FoldRow.trial_id == lease.trial_id, FoldRow.fold == lease.fold, FoldRow.state == FoldState.LEASED
        )
        .values(state=FoldState.PENDING)
    )


def lock_trial(session: Session, trial_id: int) -> TrialRow:
    """Lock a trial until the transaction ends, and read it as it is now."""
    return session.get_one(TrialRow, trial_id, with_for_update=True, populate_existing=True)
