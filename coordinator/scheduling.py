"""Every rule about folds, leases and trials: claim, report, heartbeat, release, fail, expire.

Each function runs inside its caller's transaction and commits nothing. A trial's row is locked before its
folds and leases are read or changed, and a study's row only after that; whoever holds the trial's lock sees
its folds as they are. All times are the database's.

A lease is fenced by its term: it counts until the same fold is granted to someone else, even if it lapsed.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any, Literal

import structlog
from sqlalchemy import ColumnElement, and_, case, exists, func, select, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from coordinator import pruning
from coordinator.settings import CoordinatorSettings
from coordinator.store.queries import finished_prefix, fold_counts
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
    Failure,
    FoldAssignment,
    FoldResult,
    FoldState,
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
    configure,
)
from services.errors import (
    CacheMismatch,
    InvalidInput,
    LeaseSuperseded,
    NotFound,
    ResultConflict,
    StudyOver,
    TokenRefused,
)
from services.seeds import fold_seed, sha256_of

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
    session: Session, request: ClaimRequest, key: str, settings: CoordinatorSettings
) -> FoldAssignment | None:
    """Lease a pending fold to a worker, or None when there is nothing to do now.

    Folds of a running trial that nobody holds come first, then those of the next ready trial. The same `key`
    gets the same lease. A worker runs one fold at a time: a claim with a new key gives back what it held.

    Raises:
        LeaseSuperseded: `key` was answered with a lease that is no longer current.
        StudyOver: the study that was named has ended.
        NotFound: it does not exist.
        CacheMismatch: the worker cannot read the cache of the study it named.
    """
    _see_worker(session, request.worker)
    answered = session.get(ClaimRow, key)
    if answered is not None:
        return _same_answer(session, answered, settings)
    if request.study is not None:
        _check_named_study(session, request.study, request.caches)
    _end_leases(session, LeaseRow.worker_id == request.worker.id, "superseded")
    assignment = _grant_any(session, request.worker, request.caches, request.study, settings)
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

    The same result again gets the stored verdict, without a next fold.

    Args:
        more: False when the worker is leaving and wants no next fold.

    Raises:
        LeaseSuperseded: the fold was granted to someone else, or its trial has ended.
        ResultConflict: another result was already stored for this lease.
        InvalidInput: the result does not fit the fold's clips and classes.
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
    _check_result(result, split, len(study.classes))

    epochs = [epoch.predicted for epoch in result.epochs]
    best, correct = scores.best_epoch(split.labels, epochs)
    counts = scores.confusion(split.labels, epochs[best], len(study.classes))
    row = ResultRow(
        trial_id=trial.id,
        fold=lease.fold,
        lease_id=lease.id,
        sha256=sha256,
        payload=payload,
        best_epoch=best,
        correct=correct,
        clips=len(split.labels),
        confusion=counts.tolist(),
        verdict={},
    )
    session.add(row)
    fold.state = FoldState.DONE
    _end_lease(session, lease, "done")
    session.flush()

    spec = StudySpec.model_validate(study.spec)
    progress = _progress(session, trial, study, lease.fold)
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
        "fold_accepted",
        study=study.name,
        trial=trial.number,
        fold=f"{lease.fold + 1}/{study.fold_count}",
        correct=f"{correct}/{len(split.labels)}",
        trial_accuracy=round(verdict.trial_accuracy, 4),
        decision=decision,
    )
    if not more:
        return verdict
    worker = session.get_one(WorkerRow, lease.worker_id)
    info = WorkerInfo(id=worker.id, name=worker.name, device=worker.device)
    following = None
    if decision == "continue" and study.state == StudyState.RUNNING:
        following = _grant(session, study, trial, info, settings)
    elif decision != "continue":
        following = _grant_any(session, info, [study.fingerprint], study.name, settings)
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
    study = session.get_one(StudyRow, study.id, with_for_update=True, populate_existing=True)
    if study.state != StudyState.RUNNING:
        return None
    count = session.scalar(select(func.count()).select_from(TrialRow).where(TrialRow.study_id == study.id))
    if count != number or number >= StudySpec.model_validate(study.spec).trials:
        return None
    trial = TrialRow(study_id=study.id, number=number, parameters=parameters, state=TrialState.READY)
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
    study = session.get_one(StudyRow, study_id, with_for_update=True, populate_existing=True)
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


def _grant_any(
    session: Session,
    worker: WorkerInfo,
    caches: Sequence[str],
    study_name: str | None,
    settings: CoordinatorSettings,
) -> FoldAssignment | None:
    free = ~exists().where(LeaseRow.trial_id == TrialRow.id, LeaseRow.outcome.is_(None))
    wanted = (
        select(TrialRow)
        .join(StudyRow, StudyRow.id == TrialRow.study_id)
        .where(
            StudyRow.state == StudyState.RUNNING,
            StudyRow.fingerprint.in_(caches),
            TrialRow.state.in_([TrialState.READY, TrialState.RUNNING]),
            free,
        )
        .order_by((TrialRow.state == TrialState.RUNNING).desc(), StudyRow.id, TrialRow.number)
        .limit(1)
        .with_for_update(of=TrialRow, skip_locked=True)
        .execution_options(populate_existing=True)
    )
    if study_name is not None:
        wanted = wanted.where(StudyRow.name == study_name)
    while (trial := session.scalar(wanted)) is not None:
        study = session.get_one(StudyRow, trial.study_id)
        # The query's snapshot may be older than the lock it took: look again at what others committed.
        if _is_free(session, trial) and (granted := _grant(session, study, trial, worker, settings)):
            return granted
    return None


def _is_free(session: Session, trial: TrialRow) -> bool:
    live = exists().where(LeaseRow.trial_id == trial.id, LeaseRow.outcome.is_(None))
    return not TrialState(trial.state).over and not session.scalar(select(live))


def _grant(
    session: Session, study: StudyRow, trial: TrialRow, worker: WorkerInfo, settings: CoordinatorSettings
) -> FoldAssignment | None:
    fold = session.scalar(
        select(FoldRow)
        .where(FoldRow.trial_id == trial.id, FoldRow.state == FoldState.PENDING)
        .order_by(FoldRow.fold)
        .limit(1)
        .execution_options(populate_existing=True)
    )
    if fold is None:
        return None
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
    return _assignment(session, study, trial, lease, settings)


def _assignment(
    session: Session, study: StudyRow, trial: TrialRow, lease: LeaseRow, settings: CoordinatorSettings
) -> FoldAssignment:
    spec = StudySpec.model_validate(study.spec)
    split = session.get_one(StudyFoldRow, (study.id, lease.fold))
    hyperparameters, training = configure(trial.parameters, spec.training)
    return FoldAssignment(
        lease=Lease(
            id=LeaseId(lease.id),
            term=lease.term,
            secret=lease.secret,
            seconds=settings.lease_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
        ),
        study=study.name,
        trial=trial.number,
        fold=lease.fold,
        fold_name=split.name,
        folds=study.fold_count,
        hyperparameters=hyperparameters,
        training=training,
        compute=spec.compute,
        dataset=study.dataset,
        fingerprint=study.fingerprint,
        classes=tuple(study.classes),
        test_clips=tuple(split.clip_ids),
        split_hash=study.split_hash,
        seed=fold_seed(
            study_seed=spec.seed, parameters=trial.parameters, fold=lease.fold, fingerprint=study.fingerprint
        ),
        study_seed=spec.seed,
    )


def _same_answer(session: Session, answered: ClaimRow, settings: CoordinatorSettings) -> FoldAssignment:
    lease = session.get_one(LeaseRow, answered.lease_id)
    trial = _lock_trial(session, lease.trial_id)
    session.refresh(lease)
    if lease.outcome is not None:
        raise LeaseSuperseded("this claim was answered with a lease that has ended; claim again with a new key")
    return _assignment(session, session.get_one(StudyRow, trial.study_id), trial, lease, settings)


def _check_named_study(session: Session, name: str, caches: Sequence[str]) -> None:
    study = session.scalar(select(StudyRow).where(StudyRow.name == name))
    if study is None:
        raise NotFound(f"there is no study {name!r}", field="study")
    if StudyState(study.state).over:
        raise StudyOver(f"study {name} is {study.state}")
    if study.fingerprint not in caches:
        raise CacheMismatch(
            f"study {name} trains on the clip cache {study.dataset}/{study.fingerprint[:12]}, "
            "which this worker cannot read; give it the right --cache-root",
            field="caches",
        )


def _see_worker(session: Session, worker: WorkerInfo) -> None:
    fresh = WorkerRow.last_seen > func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, SEEN_SECONDS)
    if session.scalar(select(WorkerRow.id).where(WorkerRow.id == worker.id, fresh)) is not None:
        return
    known = insert(WorkerRow).values(id=worker.id, name=worker.name, device=worker.device)
    session.execute(
        known.on_conflict_do_update(
            index_elements=[WorkerRow.id], set_={"last_seen": func.clock_timestamp(), "name": worker.name}
        )
    )


# --- Judging ----------------------------------------------------------------------------------------------


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


def _check_result(result: FoldResult, split: StudyFoldRow, classes: int) -> None:
    clips = len(split.labels)
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
    if fold.term != lease.term or fold.state == FoldState.DONE or lease.outcome == "superseded":
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
