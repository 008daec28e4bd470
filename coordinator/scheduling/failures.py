"""Folds that could not be run: failures that workers report, and leases that expire."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from sqlalchemy import (
    and_,
    func,
    select,
    update,
)
from sqlalchemy.orm import Session

from coordinator.scheduling.failed_folds import fail_fold
from coordinator.scheduling.leases import LeaseKey, Outcome, authorise, check_current, end_lease, lock_trial
from coordinator.store.studies import parsed_spec
from coordinator.store.tables import (
    LeaseRow,
    StudyRow,
    TrialRow,
)
from services.contracts import (
    Failure,
)

log = structlog.get_logger()

MAX_TRIAL_FAILURES = 2
"""Reports of kind `trial` after which a trial fails; a single one may come from a broken worker."""


def fail(session: Session, key: LeaseKey, failure: Failure) -> None:
    """Record that a worker could not run a fold.

    Kind `environment` is the worker's fault: the fold is pending again. Kind `trial` is the configuration's
    fault: the fold is pending again, until `MAX_TRIAL_FAILURES` such reports fail the trial.

    Raises:
        NotFound, TokenRefused: no such lease, or not its term and secret.
        LeaseSuperseded: the fold was granted again, is counted, or its trial has ended.
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
        fail_fold(session, held.study, parsed_spec(held.study), trial, lease.fold, failure.message)


def expired_leases(session: Session) -> Sequence[tuple[str, int]]:
    """Ids of the live leases past their expiry time, the longest expired first, with their studies' ids."""
    expired = session.execute(
        select(LeaseRow.id, TrialRow.study_id)
        .join(TrialRow, TrialRow.id == LeaseRow.trial_id)
        .where(LeaseRow.outcome.is_(None), LeaseRow.expires_at < func.clock_timestamp())
        .order_by(LeaseRow.expires_at)
    )
    return [(lease_id, study_id) for lease_id, study_id in expired]


def expire(session: Session, lease_id: str) -> None:
    """End a lease if it is still past its expiry time.

    The fold is pending again, unless `max_expired_leases` of its leases have expired: we assume that it crashes
    its workers, and it fails with its trial. Use one transaction for each lease, so that no two trials are
    locked together.
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
    study = session.get_one(StudyRow, trial.study_id)
    spec = parsed_spec(study)
    if _count_outcomes(session, trial.id, lease.fold, "lapsed") >= spec.max_expired_leases:
        reason = f"{spec.max_expired_leases} leases of fold {lease.fold} expired"
        session.execute(update(LeaseRow).where(LeaseRow.id == lease.id).values(message=reason))
        fail_fold(session, study, spec, trial, lease.fold, reason)


def _count_outcomes(session: Session, trial_id: int, fold: int, outcome: Outcome) -> int:
    return (
        session.scalar(
            select(func.count())
            .select_from(LeaseRow)
            .where(and_(LeaseRow.trial_id == trial_id, LeaseRow.fold == fold, LeaseRow.outcome == outcome))
        )
        or 0
    )
