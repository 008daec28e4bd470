"""Recording the result that a worker reports for its lease."""

from __future__ import annotations

import structlog
from sqlalchemy import (
    update,
)
from sqlalchemy.orm import Session

from coordinator.pruning.fold_order import order_of
from coordinator.scheduling.claims import (
    assignment_of,
    claim_for_same_study,
    grant_any,
    grant_fold,
    log_granted,
    new_lease,
)
from coordinator.scheduling.counting import known_next_fold, next_to_run, record_result
from coordinator.scheduling.failed_folds import fail_if_next, next_in_order
from coordinator.scheduling.judging import judge
from coordinator.scheduling.leases import LeaseKey, authorise, check_current
from coordinator.scheduling.results import check_result, score_result
from coordinator.settings import CoordinatorSettings
from coordinator.store.folds import FoldCount, fold_task
from coordinator.store.studies import parsed_spec, study_split
from coordinator.store.tables import (
    ResultRow,
)
from services.contracts import (
    FoldResult,
    StudyState,
    Verdict,
)
from services.errors import (
    ResultConflict,
)
from services.seeds import sha256_of

log = structlog.get_logger()


def report(
    session: Session,
    key: LeaseKey,
    result: FoldResult,
    settings: CoordinatorSettings,
    *,
    more: bool = True,
) -> Verdict:
    """Count a fold: store its result, decide on its trial and grant the worker's next fold.

    If a trial with equal parameters has run this trial's next folds, they are counted too, up to the first that
    it has not run; the verdict is the one on the last fold counted. A retry with the same result gets the
    stored verdict, without a next fold.

    Args:
        session: the caller's open transaction.
        key: key of the lease.
        result: what the worker reported for the fold.
        settings: the coordinator's settings.
        more: False when the worker ends and wants no next fold.

    Raises:
        LeaseSuperseded: the fold was granted again, is counted, or its trial has ended.
        ResultConflict: another result is already stored for this lease.
        InvalidInput: the result does not fit the fold's clips and classes, or is that of another task.
        NotFound, TokenRefused: no such lease, or not its term and secret.
    """
    held = authorise(session, key)
    lease, trial, study = held.lease, held.trial, held.study
    payload = result.model_dump(mode="json")
    sha256 = sha256_of(payload)
    stored = held.result
    if stored is not None and stored.lease_id == lease.id:
        if stored.sha256 != sha256:
            log.error("result_conflict", lease=lease.id, trial_id=trial.id, fold=lease.fold)
            raise ResultConflict(f"another result of lease {lease.id} is already stored; this one was rejected")
        return Verdict.model_validate(stored.verdict)
    check_current(held)
    spec = parsed_spec(study)
    split = study_split(session, study)[lease.fold]
    check_result(result, split, fold_task(study, spec, trial, split))

    row = score_result(study, spec, trial, split, result)
    row.lease_id, row.payload, row.sha256 = lease.id, payload, sha256
    judgement = judge(session, study, spec, trial, row, held.done)
    verdict = judgement.verdict
    fails = False
    if held.failed:
        done = [*held.done, FoldCount(fold=row.fold, correct=row.correct, clips=row.clips)]
        fails = next_in_order(done, order_of(session, study, trial), held.failed) is not None
    continues = verdict.decision == "continue" and not fails
    wants_more = more and held.worker.drain is None and (not continues or study.state == StudyState.RUNNING)
    following = known_next_fold(session, study, spec, trial, held) if wants_more and continues else None
    # Mostly there is one; then the fold is counted and the next is leased in one statement.
    lease_of_next = None if following is None else new_lease(trial, following, held.worker.id, settings)
    record_result(session, study, trial, row, judgement, lease_of_next)
    if fails and verdict.decision == "continue":
        fail_if_next(session, study, trial)
    if not wants_more:
        return verdict
    if lease_of_next is not None:
        log_granted(study, trial, lease_of_next, held.worker.name)
        assignment = assignment_of(session, study, trial, lease_of_next, settings)
        return verdict.model_copy(update={"next": assignment})
    if continues:
        following, reused = next_to_run(session, study, spec, trial)
        if reused is not None:
            verdict = reused
            this = update(ResultRow).where(ResultRow.trial_id == trial.id, ResultRow.fold == lease.fold)
            session.execute(this.values(verdict=verdict.model_dump(mode="json")))
    request, able = claim_for_same_study(held.worker, study, spec)
    granted = (
        grant_fold(session, study, trial, following, request.worker, settings)
        if following is not None
        else grant_any(session, request, able, settings)
    )
    return verdict.model_copy(update={"next": granted})
