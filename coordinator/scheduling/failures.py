"""Folds that could not be run: failures that workers report, and leases that expire."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from sqlalchemy import (
    and_,
    func,
    select,
)
from sqlalchemy.orm import Session

from coordinator.scheduling.leases import LeaseKey, Outcome, authorise, check_current, end_lease, lock_trial
from coordinator.scheduling.trials import fail_trial
from coordinator.store.tables import (
    LeaseRow,
)
from services.contracts import (
    Failure,
)

log = structlog.get_logger()


MAX_EXPIRED_LEASES = 3
"""So many leases of one fold that lapsed without a word fail the fold: it kills its workers."""


MAX_TRIAL_FAILURES = 2
"""So many reports that a trial itself is at fault fail it: one may be a broken worker."""


def fail(session: Session, key: LeaseKey, failure: Failure) -> None:
    """Take note that a fold could not be run.

    `environment`: the worker's fault; the fold is pending again. `trial`: the configuration's fault; the
    second such report fails the trial.

    Raises:
        NotFound, TokenRefused: no such lease, or not its secret.
        LeaseSuperseded: the fold is someone else's by now.
    """
    held = authorise(session, key)
    lease, trial = held.lease, held.trial
    if lease.outcome in {"environment", "trial"}:
        return
    check_current(held)
    lease.message = failure.message
    end_lease(session, lease, failure.kind)
    log.warning("fold_failed", trial=trial.number, fold=lease.fold, kind=failure.kind, message=failure.message)
    session.flush()
    reports = _count_outcomes(session, trial.id, lease.fold, "trial")
    if failure.kind == "trial" and reports >= MAX_TRIAL_FAILURES:
        fail_trial(session, trial, lease.fold, failure.message)


def expired_leases(session: Session) -> Sequence[str]:
    """Ids of the live leases whose time is over."""
    return session.scalars(
        select(LeaseRow.id).where(LeaseRow.outcome.is_(None), LeaseRow.expires_at < func.clock_timestamp())
    ).all()


def expire(session: Session, lease_id: str) -> None:
    """End a lease if its time is still over.

    The fold is pending again, unless too many of its leases lapsed: then it and its trial have failed.
    One lease per transaction, so that no two trials are locked together.
    """
    lease = session.get_one(LeaseRow, lease_id)
    trial = lock_trial(session, lease.trial_id)
    over = select(LeaseRow.id).where(
        LeaseRow.id == lease_id, LeaseRow.outcome.is_(None), LeaseRow.expires_at < func.clock_timestamp()
    )
    if session.scalar(over) is None:
        return
    session.refresh(lease)
    end_lease(session, lease, "lapsed")
    log.warning("lease_lapsed", trial=trial.number, fold=lease.fold, term=lease.term, worker=lease.worker_id)
    if _count_outcomes(session, trial.id, lease.fold, "lapsed") >= MAX_EXPIRED_LEASES:
        reason = f"{MAX_EXPIRED_LEASES} leases of fold {lease.fold} lapsed without a word"
        fail_trial(session, trial, lease.fold, reason)


def _count_outcomes(session: Session, trial_id: int, fold: int, outcome: Outcome) -> int:
    return (
        session.scalar(
            select(func.count())
            .select_from(LeaseRow)
            .where(and_(LeaseRow.trial_id == trial_id, LeaseRow.fold == fold, LeaseRow.outcome == outcome))
        )
        or 0
    )
