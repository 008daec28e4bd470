"""Every rule about folds, leases and trials: claim, report, reuse, heartbeat, release, fail, expire.

Each function runs inside its caller's transaction and commits nothing. A trial's row is locked before its
folds and leases are read or changed, and a study's row only after that; whoever holds the trial's lock sees
its folds as they are. All times are the database's.

A lease is fenced by its term: it counts until the same fold is granted to someone else, even if it lapsed.

A fold that a trial with equal parameters has run is counted from there and not leased. Another trial's results
are read without its lock: they never change.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any, Literal

import structlog
from sqlalchemy import (
    JSON,
    ColumnElement,
    and_,
    case,
    exists,
    false,
    func,
    or_,
    select,
    true,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from coordinator import pruning
from coordinator.settings import CoordinatorSettings
from coordinator.store.queries import finished_prefix, fold_counts, fold_task, lock_study
from coordinator.store.tables import (
    ClaimRow,
    FoldRow,
    LeaseRow,
    OutboxRow,
    ResultRow,
    StudyFoldRow,
    StudyRow,
    TrialRow,
    WorkerRow,
)
from services import scores
from services.contracts import (
    ClaimRequest,
    ComputePlan,
    Failure,
    FoldAssignment,
    FoldResult,
    FoldState,
    FoldTask,
    Heartbeat,
    HeartbeatReply,
    Lease,
    LeaseId,
    PruneDecision,
    StudySpec,
    StudyState,
    TrialState,
    Verdict,
    WorkerInfo,
)
from services.errors import (
    CacheMismatch,
    InvalidInput,
    LeaseSuperseded,
    NotFound,
    PlanNotSound,
    ResultConflict,
    StudyOver,
    TokenRefused,
)
from services.seeds import sha256_of

log = structlog.get_logger()

LAPSES_ALLOWED = 3
"""So many leases of one fold that lapsed without a word fail the fold: it kills its workers."""

SEEN_SECONDS = 10.0
"""A worker's last word is noted no more often, so that waiting for a fold writes nothing."""

TRIAL_FAILURES_ALLOWED = 2
"""So many reports that a trial itself is at fault fail it: one may be a broken worker."""


@dataclass(frozen=True, kw_only=True)
class LeaseKey:
    """What a worker shows with every call on its lease."""

    id: str
    term: int
    secret: str


Outcome = Literal["done", "lapsed", "released", "environment", "trial", "abandoned", "superseded"]


def claim(
    session: Session,
    request: ClaimRequest,
    key: str,
    settings: CoordinatorSettings,
    *,
    pod_uid: str | None = None,
) -> FoldAssignment | None:
    """Lease a pending fold to a worker, or None when there is nothing to do now.

    Folds of a running trial that nobody holds come first, then those of the next ready trial. The same `key`
    gets the same lease. A worker runs one fold at a time: a claim with a new key gives back what it held.
    `pod_uid` is of the Kubernetes pod that the worker runs in, noted when it is seen first.

    Raises:
        LeaseSuperseded: `key` was answered with a lease that is no longer current.
        StudyOver: the study that was named has ended.
        NotFound: it does not exist.
        CacheMismatch: the worker cannot read the cache of the study it named.
        PlanNotSound: its device does not run the compute plan of the study it named.
    """
    _see_worker(session, request.worker, pod_uid)
    answered = session.get(ClaimRow, key)
    if answered is not None:
        return _same_answer(session, answered, settings)
    if request.study is not None:
        _check_named_study(session, request.study, request)
    _end_leases(session, LeaseRow.worker_id == request.worker.id, "superseded")
    assignment = _grant_any(session, request, settings)
    if assignment is not None:
        session.execute(insert(ClaimRow).values(key=key, lease_id=assignment.lease.id))
    return assignment


def report(
    session: Session,
    key: LeaseKey,
    result: FoldResult,
    settings: CoordinatorSettings,
    *,
    more: bool = True,
) -> Verdict:
    """Count a fold: store its result, decide on its trial and grant the worker's next fold.

    The trial's next folds are counted too as far as an equal trial has run them; the verdict is that on the
    last. The same result again gets the stored verdict, without a next fold.

    Args:
        more: False when the worker is leaving and wants no next fold.

    Raises:
        LeaseSuperseded: the fold was granted to someone else, or its trial has ended.
        ResultConflict: another result was already stored for this lease.
        InvalidInput: the result does not fit the fold's clips and classes, or is that of another task.
        NotFound, TokenRefused: no such lease, or not its secret.
    """
    lease, trial = _authorise(session, key)
    payload = result.model_dump(mode="json")
    sha256 = sha256_of(payload)
    stored = session.get(ResultRow, (lease.trial_id, lease.fold))
    if stored is not None and stored.lease_id == lease.id:
        if stored.sha256 != sha256:
            log.error("result_conflict", lease=lease.id, trial_id=trial.id, fold=lease.fold)
            raise ResultConflict(f"another result of lease {lease.id} is already stored; this one is refused")
        return Verdict.model_validate(stored.verdict)
    fold = _current_fold(session, lease, trial)
    study = session.get_one(StudyRow, trial.study_id)
    split = session.get_one(StudyFoldRow, (study.id, lease.fold))
    spec = StudySpec.model_validate(study.spec)
    _check_result(result, split, fold_task(study, spec, trial, split))

    row = _scored(lease, split, result, len(study.classes))
    row.payload, row.sha256 = payload, sha256
    fold.state = FoldState.DONE
    _end_lease(session, lease, "done")
    verdict = _count(session, study, spec, trial, row)
    if not more or (verdict.decision == "continue" and study.state != StudyState.RUNNING):
        return verdict
    next_fold = None
    if verdict.decision == "continue":
        next_fold, reused = _next_to_run(session, study, spec, trial)
        verdict = reused or verdict
        row.verdict = verdict.model_dump(mode="json")
    request = _same_work(session.get_one(WorkerRow, lease.worker_id), study, spec)
    following = (
        _lease(session, study, spec, trial, next_fold, request.worker, settings)
        if next_fold is not None
        else _grant_any(session, request, settings)
    )
    return verdict.model_copy(update={"next": following})


def heartbeat(
    session: Session, key: LeaseKey, beat: Heartbeat, settings: CoordinatorSettings
) -> HeartbeatReply:
    """Renew a lease whose worker makes progress, and tell the worker what to do.

    A step counter that stands still for longer than the stall limit is not renewed. A lease that lapsed and
    was not granted again is taken up anew.

    Raises:
        NotFound, TokenRefused: no such lease, or not its secret.
    """
    lease, trial = _authorise(session, key)
    session.execute(
        update(WorkerRow).where(WorkerRow.id == lease.worker_id).values(last_seen=func.clock_timestamp())
    )
    try:
        fold = _current_fold(session, lease, trial)
    except LeaseSuperseded:
        return HeartbeatReply(command="abandon", lease_seconds=0)
    if lease.outcome not in {None, "lapsed"}:
        return HeartbeatReply(command="abandon", lease_seconds=0)
    moved = lease.step != beat.step
    renewed = session.execute(
        update(LeaseRow)
        .where(LeaseRow.id == lease.id)
        .where(true() if moved else _still_within(settings.stall_seconds))
        .values(
            expires_at=_from_now(settings.lease_seconds),
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
    fold.state = FoldState.LEASED
    return HeartbeatReply(command="continue", lease_seconds=settings.lease_seconds)


def release(session: Session, key: LeaseKey) -> None:
    """Give a fold back unharmed: a worker that shuts down, or that changed its mind.

    Raises:
        NotFound, TokenRefused: no such lease, or not its secret.
    """
    lease, trial = _authorise(session, key)
    if lease.outcome is None:
        _end_lease(session, lease, "released")
        log.info("fold_released", trial=trial.number, fold=lease.fold)


def fail(session: Session, key: LeaseKey, failure: Failure) -> None:
    """Take note that a fold could not be run.

    `environment`: the worker's fault; the fold is pending again. `trial`: the configuration's fault; the
    second such report fails the trial.

    Raises:
        NotFound, TokenRefused: no such lease, or not its secret.
        LeaseSuperseded: the fold is someone else's by now.
    """
    lease, trial = _authorise(session, key)
    if lease.outcome in {"environment", "trial"}:
        return
    _current_fold(session, lease, trial)
    lease.message = failure.message
    _end_lease(session, lease, failure.kind)
    log.warning("fold_failed", trial=trial.number, fold=lease.fold, kind=failure.kind, message=failure.message)
    session.flush()
    reports = _count_outcomes(session, trial.id, lease.fold, "trial")
    if failure.kind == "trial" and reports >= TRIAL_FAILURES_ALLOWED:
        _fail_trial(session, trial, lease.fold, failure.message)


def lapsed_leases(session: Session) -> Sequence[str]:
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
    trial = _lock_trial(session, lease.trial_id)
    over = select(LeaseRow.id).where(
        LeaseRow.id == lease_id, LeaseRow.outcome.is_(None), LeaseRow.expires_at < func.clock_timestamp()
    )
    if session.scalar(over) is None:
        return
    session.refresh(lease)
    _end_lease(session, lease, "lapsed")
    log.warning("lease_lapsed", trial=trial.number, fold=lease.fold, term=lease.term, worker=lease.worker_id)
    if _count_outcomes(session, trial.id, lease.fold, "lapsed") >= LAPSES_ALLOWED:
        reason = f"{LAPSES_ALLOWED} leases of fold {lease.fold} lapsed without a word"
        _fail_trial(session, trial, lease.fold, reason)


def add_trial(session: Session, study: StudyRow, parameters: dict[str, Any], number: int) -> TrialRow | None:
    """Add a ready trial with its folds, unless the study's budget is spent or the number is taken.

    Locks the study's row, so two callers cannot overrun the budget together, and none adds to a study that
    has ended.
    """
    study = lock_study(session, study.id)
    if study.state != StudyState.RUNNING:
        return None
    count = session.scalar(select(func.count()).select_from(TrialRow).where(TrialRow.study_id == study.id))
    if count != number or number >= StudySpec.model_validate(study.spec).trials:
        return None
    trial = TrialRow(
        study_id=study.id,
        number=number,
        parameters=parameters,
        parameters_hash=sha256_of(parameters),
        state=TrialState.READY,
    )
    session.add(trial)
    session.flush()
    session.add_all(
        FoldRow(trial_id=trial.id, fold=index, state=FoldState.PENDING, term=0)
        for index in range(study.fold_count)
    )
    _changed(session, trial)
    return trial


def cancel_trial(session: Session, trial_id: int, reason: str) -> None:
    """End a trial of a stopped study, and its leases, if it has not ended. One trial per transaction."""
    trial = _lock_trial(session, trial_id)
    if not TrialState(trial.state).over:
        _end_trial(session, trial, TrialState.CANCELLED, reason)


def abandon_leases(session: Session, study: StudyRow) -> None:
    """End the live leases of a study; their workers learn it with their next word."""
    of_study = select(TrialRow.id).where(TrialRow.study_id == study.id)
    _end_leases(session, LeaseRow.trial_id.in_(of_study), "abandoned")


def complete_if_done(session: Session, study_id: int) -> None:
    """Complete a running study whose whole budget of trials has ended."""
    study = lock_study(session, study_id)
    if study.state not in {StudyState.RUNNING, StudyState.PAUSED}:
        return
    unfinished = case((TrialRow.state.in_([TrialState.READY, TrialState.RUNNING]), 1))
    total, open_trials = session.execute(
        select(func.count(), func.count(unfinished)).where(TrialRow.study_id == study_id)
    ).one()
    if open_trials or total < StudySpec.model_validate(study.spec).trials:
        return
    study.state = StudyState.COMPLETE
    log.info("study_complete", study=study.name, trials=total)


# --- Granting ---------------------------------------------------------------------------------------------


def _grant_any(session: Session, request: ClaimRequest, settings: CoordinatorSettings) -> FoldAssignment | None:
    free = ~exists().where(LeaseRow.trial_id == TrialRow.id, LeaseRow.outcome.is_(None))
    wanted = (
        select(TrialRow)
        .join(StudyRow, StudyRow.id == TrialRow.study_id)
        .where(
            StudyRow.state == StudyState.RUNNING,
            StudyRow.fingerprint.in_(request.caches),
            _planned(request.plans),
            TrialRow.state.in_([TrialState.READY, TrialState.RUNNING]),
            free,
        )
        .order_by((TrialRow.state == TrialState.RUNNING).desc(), StudyRow.id, TrialRow.number)
        .limit(1)
        .with_for_update(of=TrialRow, skip_locked=True)
        .execution_options(populate_existing=True)
    )
    if request.study is not None:
        wanted = wanted.where(StudyRow.name == request.study)
    while (trial := session.scalar(wanted)) is not None:
        study = session.get_one(StudyRow, trial.study_id)
        # The query's snapshot may be older than the lock it took: look again at what others committed.
        if not _is_free(session, trial):
            continue
        spec = StudySpec.model_validate(study.spec)
        fold, _ = _next_to_run(session, study, spec, trial)
        if fold is not None:
            return _lease(session, study, spec, trial, fold, request.worker, settings)
        # Its end locked its study; another study's is not to be wanted in the same transaction.
        wanted = wanted.where(StudyRow.id == study.id)
    return None


def _planned(plans: Sequence[ComputePlan]) -> ColumnElement[bool]:
    precision = type_coerce(StudyRow.spec, JSON)["compute", "precision"].as_string()
    compiled = type_coerce(StudyRow.spec, JSON)["compute", "compiled"].as_boolean()
    return or_(false(), *(and_(precision == plan.precision, compiled.is_(plan.compiled)) for plan in plans))


def _same_work(worker: WorkerRow, study: StudyRow, spec: StudySpec) -> ClaimRequest:
    """What a worker would claim that has just run a fold of this study."""
    return ClaimRequest(
        worker=WorkerInfo(id=worker.id, name=worker.name, device=worker.device),
        study=study.name,
        caches=(study.fingerprint,),
        plans=(spec.compute,),
    )


def _is_free(session: Session, trial: TrialRow) -> bool:
    live = exists().where(LeaseRow.trial_id == trial.id, LeaseRow.outcome.is_(None))
    return not TrialState(trial.state).over and not session.scalar(select(live))


def _lease(
    session: Session,
    study: StudyRow,
    spec: StudySpec,
    trial: TrialRow,
    fold: FoldRow,
    worker: WorkerInfo,
    settings: CoordinatorSettings,
) -> FoldAssignment:
    fold.term += 1
    fold.state = FoldState.LEASED
    trial.state = TrialState.RUNNING
    lease = LeaseRow(
        id=str(uuid.uuid4()),
        trial_id=trial.id,
        fold=fold.fold,
        term=fold.term,
        secret=secrets.token_urlsafe(24),
        worker_id=worker.id,
        expires_at=_from_now(settings.lease_seconds),
        step_at=func.clock_timestamp(),
    )
    session.add(lease)
    session.flush()
    log.info(
        "fold_leased",
        study=study.name,
        trial=trial.number,
        fold=f"{fold.fold + 1}/{study.fold_count}",
        term=fold.term,
        worker=worker.name,
    )
    return _assignment(session, study, spec, trial, lease, settings)


def _assignment(
    session: Session,
    study: StudyRow,
    spec: StudySpec,
    trial: TrialRow,
    lease: LeaseRow,
    settings: CoordinatorSettings,
) -> FoldAssignment:
    split = session.get_one(StudyFoldRow, (study.id, lease.fold))
    return FoldAssignment(
        lease=Lease(
            id=LeaseId(lease.id),
            term=lease.term,
            secret=lease.secret,
            seconds=settings.lease_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
        ),
        **dict(fold_task(study, spec, trial, split)),
    )


def _same_answer(session: Session, answered: ClaimRow, settings: CoordinatorSettings) -> FoldAssignment:
    lease = session.get_one(LeaseRow, answered.lease_id)
    trial = _lock_trial(session, lease.trial_id)
    session.refresh(lease)
    if lease.outcome is not None:
        raise LeaseSuperseded("this claim was answered with a lease that has ended; claim again with a new key")
    study = session.get_one(StudyRow, trial.study_id)
    return _assignment(session, study, StudySpec.model_validate(study.spec), trial, lease, settings)


def _check_named_study(session: Session, name: str, request: ClaimRequest) -> None:
    study = session.scalar(select(StudyRow).where(StudyRow.name == name))
    if study is None:
        raise NotFound(f"there is no study {name!r}", field="study")
    if StudyState(study.state).over:
        raise StudyOver(f"study {name} is {study.state}")
    if study.fingerprint not in request.caches:
        raise CacheMismatch(
            f"study {name} trains on the clip cache {study.dataset}/{study.fingerprint[:12]}, "
            "which this worker cannot read; give it the right --cache-root",
            field="caches",
        )
    plan = StudySpec.model_validate(study.spec).compute
    if plan not in request.plans:
        raise PlanNotSound(
            f"study {name} computes in {plan.precision}{' compiled' if plan.compiled else ''}, which this "
            "worker's device does not run soundly; use another device, or a study with "
            "compute.precision=fp32 and compute.compiled=false",
            field="plans",
        )


def _see_worker(session: Session, worker: WorkerInfo, pod_uid: str | None) -> None:
    fresh = WorkerRow.last_seen > func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, SEEN_SECONDS)
    if session.scalar(select(WorkerRow.id).where(WorkerRow.id == worker.id, fresh)) is not None:
        return
    known = insert(WorkerRow).values(id=worker.id, name=worker.name, device=worker.device, pod_uid=pod_uid)
    session.execute(
        known.on_conflict_do_update(
            index_elements=[WorkerRow.id], set_={"last_seen": func.clock_timestamp(), "name": worker.name}
        )
    )


# --- Counting ---------------------------------------------------------------------------------------------


def _next_to_run(
    session: Session, study: StudyRow, spec: StudySpec, trial: TrialRow
) -> tuple[FoldRow | None, Verdict | None]:
    """Count the trial's next folds as long as a trial with equal parameters has run them.

    Equal parameters mean equal seeds on equal clips, so running them again would give the same results. They
    are judged one by one, as if they were.

    Returns:
        The fold to run next, None when the trial has ended; and the verdict on the last one counted, if any.
    """
    verdict = None
    while True:
        fold, equal = _next_fold(session, trial)
        if equal is None or not spec.economies.reuse_folds:
            return fold, verdict
        row = ResultRow(
            trial_id=trial.id,
            fold=fold.fold,
            reused_from=equal.trial_id,
            sha256=equal.sha256,
            payload=equal.payload,
            best_epoch=equal.best_epoch,
            correct=equal.correct,
            clips=equal.clips,
            confusion=equal.confusion,
        )
        fold.state = FoldState.DONE
        verdict = _count(session, study, spec, trial, row)
        if verdict.decision != "continue":
            return None, verdict


def _next_fold(session: Session, trial: TrialRow) -> tuple[FoldRow, ResultRow | None]:
    """The first pending fold of a trial under way, and what an equal trial got when it ran that fold."""
    twin = select(TrialRow.id).where(
        TrialRow.study_id == trial.study_id, TrialRow.parameters_hash == trial.parameters_hash
    )
    same_fold = and_(
        ResultRow.fold == FoldRow.fold, ResultRow.reused_from.is_(None), ResultRow.trial_id.in_(twin)
    )
    found = session.execute(
        select(FoldRow, ResultRow)
        .outerjoin(ResultRow, same_fold)
        .where(FoldRow.trial_id == trial.id, FoldRow.state == FoldState.PENDING)
        .order_by(FoldRow.fold, ResultRow.trial_id)
        .limit(1)
        .execution_options(populate_existing=True)
    ).one()
    return found[0], found[1]


def _scored(lease: LeaseRow, split: StudyFoldRow, result: FoldResult, classes: int) -> ResultRow:
    epochs = [epoch.predicted for epoch in result.epochs]
    best, correct = scores.best_epoch(split.labels, epochs)
    return ResultRow(
        trial_id=lease.trial_id,
        fold=lease.fold,
        lease_id=lease.id,
        best_epoch=best,
        correct=correct,
        clips=len(split.labels),
        confusion=scores.confusion(split.labels, epochs[best], classes).tolist(),
    )


def _count(session: Session, study: StudyRow, spec: StudySpec, trial: TrialRow, row: ResultRow) -> Verdict:
    """Store the result of a fold that is done, and decide on its trial."""
    row.verdict = {}
    session.add(row)
    session.flush()
    progress = _progress(session, trial, study, row.fold)
    decision = _judge(session, study, spec, trial, progress)
    verdict = Verdict(
        decision=decision,
        trial_accuracy=progress.correct / progress.clips_done,
        pruned=PruneDecision.model_validate(trial.pruned) if trial.pruned else None,
    )
    row.verdict = verdict.model_dump(mode="json")
    _changed(session, trial)
    session.flush()
    log.info(
        "fold_accepted" if row.reused_from is None else "fold_reused",
        study=study.name,
        trial=trial.number,
        fold=f"{row.fold + 1}/{study.fold_count}",
        correct=f"{row.correct}/{row.clips}",
        trial_accuracy=round(verdict.trial_accuracy, 4),
        decision=decision,
    )
    return verdict


def _judge(
    session: Session, study: StudyRow, spec: StudySpec, trial: TrialRow, progress: pruning.TrialProgress
) -> Literal["continue", "complete", "pruned"]:
    if progress.clips_done == progress.clips_total:
        trial.value = progress.correct / progress.clips_total
        _end_trial(session, trial, TrialState.COMPLETE, None)
        return "complete"
    decision = pruning.decide(spec, progress, lambda step: _complete_at_step(session, study, step))
    if decision is None:
        return "continue"
    trial.pruned = decision.model_dump(mode="json")
    _end_trial(session, trial, TrialState.PRUNED, f"rule {decision.rule} after fold {decision.fold}")
    return "pruned"


def _progress(session: Session, trial: TrialRow, study: StudyRow, fold: int) -> pruning.TrialProgress:
    done = fold_counts(session, [trial.id])[trial.id]
    return pruning.TrialProgress(
        fold=fold,
        prefix=finished_prefix(done),
        correct=sum(count.correct for count in done),
        clips_done=sum(count.clips for count in done),
        clips_total=study.clips,
    )


def _complete_at_step(session: Session, study: StudyRow, step: int) -> list[float]:
    accuracies = session.execute(
        select(func.sum(ResultRow.correct), func.sum(ResultRow.clips))
        .join(TrialRow, TrialRow.id == ResultRow.trial_id)
        .where(TrialRow.study_id == study.id, TrialRow.state == TrialState.COMPLETE, ResultRow.fold < step)
        .group_by(ResultRow.trial_id)
    ).all()
    return [int(correct) / int(clips) for correct, clips in accuracies]


def _check_result(result: FoldResult, split: StudyFoldRow, task: FoldTask) -> None:
    for field in ("fingerprint", "split_hash", "seed", "compute"):
        said, asked = getattr(result.provenance, field), getattr(task, field)
        if said != asked:
            where = f"provenance.{field}"
            raise InvalidInput(f"{where} is {said!r}, the fold was leased with {asked!r}", field=where)
    clips, classes = len(split.labels), len(task.classes)
    for number, epoch in enumerate(result.epochs):
        where = f"epochs.{number}"
        if len(epoch.predicted) != clips or len(epoch.probabilities) != clips:
            raise InvalidInput(f"{where} has not one prediction for each of {clips} test clips", field=where)
        if any(not 0 <= label < classes for label in epoch.predicted):
            raise InvalidInput(f"{where} predicts a label outside 0..{classes - 1}", field=where)
        if any(len(row) != classes for row in epoch.probabilities):
            raise InvalidInput(f"{where} has not one probability for each of {classes} classes", field=where)


# --- Ending -----------------------------------------------------------------------------------------------


def _fail_trial(session: Session, trial: TrialRow, fold: int, reason: str) -> None:
    session.execute(
        update(FoldRow).where(FoldRow.trial_id == trial.id, FoldRow.fold == fold).values(state=FoldState.FAILED)
    )
    _end_trial(session, trial, TrialState.FAILED, reason)


def _end_trial(session: Session, trial: TrialRow, state: TrialState, reason: str | None) -> None:
    trial.state = state
    trial.end_reason = reason
    for lease in session.scalars(
        select(LeaseRow).where(LeaseRow.trial_id == trial.id, LeaseRow.outcome.is_(None))
    ):
        _end_lease(session, lease, "abandoned")
    session.flush()
    session.execute(update(TrialRow).where(TrialRow.id == trial.id).values(ended_at=func.clock_timestamp()))
    _changed(session, trial)
    complete_if_done(session, trial.study_id)


def _end_leases(session: Session, which: ColumnElement[bool], outcome: Outcome) -> None:
    live = select(LeaseRow).where(which, LeaseRow.outcome.is_(None)).order_by(LeaseRow.trial_id)
    for lease in session.scalars(live).all():
        _lock_trial(session, lease.trial_id)
        # It may have ended, and its fold been granted again, before the lock was ours.
        session.refresh(lease)
        if lease.outcome is None:
            _end_lease(session, lease, outcome)


def _end_lease(session: Session, lease: LeaseRow, outcome: Outcome) -> None:
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


# --- Fencing ----------------------------------------------------------------------------------------------


def _authorise(session: Session, key: LeaseKey) -> tuple[LeaseRow, TrialRow]:
    lease = session.get(LeaseRow, key.id)
    if lease is None:
        raise NotFound(f"there is no lease {key.id}", field="lease")
    if lease.term != key.term or not compare_digest(lease.secret.encode(), key.secret.encode()):
        raise TokenRefused(f"term or secret of lease {key.id} is wrong", field="lease")
    trial = _lock_trial(session, lease.trial_id)
    session.refresh(lease)
    return lease, trial


def _current_fold(session: Session, lease: LeaseRow, trial: TrialRow) -> FoldRow:
    fold = session.get_one(FoldRow, (lease.trial_id, lease.fold), populate_existing=True)
    if TrialState(trial.state).over:
        raise LeaseSuperseded(f"trial {trial.number} is already {trial.state}")
    if fold.state == FoldState.DONE:
        raise LeaseSuperseded(f"fold {lease.fold} of trial {trial.number} is already counted")
    if fold.term != lease.term or lease.outcome == "superseded":
        raise LeaseSuperseded(
            f"fold {lease.fold} of trial {trial.number} was granted again in term {fold.term}"
        )
    return fold


def _lock_trial(session: Session, trial_id: int) -> TrialRow:
    return session.get_one(TrialRow, trial_id, with_for_update=True, populate_existing=True)


def _count_outcomes(session: Session, trial_id: int, fold: int, outcome: Outcome) -> int:
    return (
        session.scalar(
            select(func.count())
            .select_from(LeaseRow)
            .where(and_(LeaseRow.trial_id == trial_id, LeaseRow.fold == fold, LeaseRow.outcome == outcome))
        )
        or 0
    )


def _changed(session: Session, trial: TrialRow) -> None:
    session.add(OutboxRow(trial_id=trial.id))


def _from_now(seconds: float) -> ColumnElement[Any]:
    return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def _still_within(seconds: float) -> ColumnElement[bool]:
    return LeaseRow.step_at > func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, seconds)
