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
from pydantic import ValidationError
from sqlalchemy import (
    ARRAY,
    JSON,
    ColumnElement,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    exists,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased, defer, load_only

from coordinator import fold_order, pruning
from coordinator.events import tell
from coordinator.settings import CoordinatorSettings
from coordinator.store.complete_trials import next_completed
from coordinator.store.fold_table import fold_table
from coordinator.store.fold_writes import NewLease, count_fold, lease_fold
from coordinator.store.queries import (
    FoldCount,
    finished_prefix,
    fold_counts,
    fold_task,
    lock_study,
    parsed_spec,
    study_split,
)
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
    EventKind,
    Failure,
    FoldAssignment,
    FoldResult,
    FoldState,
    FoldTask,
    Heartbeat,
    HeartbeatReply,
    Lease,
    LeaseId,
    StudySpec,
    StudyState,
    TrialState,
    Verdict,
    WorkerInfo,
)
from services.errors import (
    CacheMismatch,
    Conflict,
    InvalidInput,
    LeaseSuperseded,
    NotFound,
    PlanNotSound,
    ResultConflict,
    StudyOver,
    TokenRefused,
    WorkerDrained,
)
from services.folds import AllClips, HeldOut
from services.search_space import first_problem
from services.seeds import sha256_of

log = structlog.get_logger()

LAPSES_ALLOWED = 3
"""So many leases of one fold that lapsed without a word fail the fold: it kills its workers."""

NAMED_SECONDS = 100.0
"""A worker that was not heard of for so long, over three heartbeats, is not meant by its name."""

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


# Not a parameter: a plan that is kept can then use the index of the folds that are not done.
_PENDING: ColumnElement[str] = literal_column(f"'{FoldState.PENDING.value}'")

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
        WorkerDrained: the worker is to end.
    """
    _see_worker(session, request.worker, pod_uid)
    answered = session.get(ClaimRow, key)
    if answered is not None:
        return _same_answer(session, answered, settings)
    if session.scalar(select(WorkerRow.drain).where(WorkerRow.id == request.worker.id)) is not None:
        raise WorkerDrained(f"worker {request.worker.name} is to end: it was drained")
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
    held = _authorise(session, key)
    lease, trial, study = held.lease, held.trial, held.study
    payload = result.model_dump(mode="json")
    sha256 = sha256_of(payload)
    stored = held.result
    if stored is not None and stored.lease_id == lease.id:
        if stored.sha256 != sha256:
            log.error("result_conflict", lease=lease.id, trial_id=trial.id, fold=lease.fold)
            raise ResultConflict(f"another result of lease {lease.id} is already stored; this one is refused")
        return Verdict.model_validate(stored.verdict)
    _check_current(held)
    spec = parsed_spec(study)
    split = study_split(session, study)[lease.fold]
    _check_result(result, split, fold_task(study, spec, trial, split))

    row = _scored(study, spec, trial, split, result)
    row.lease_id, row.payload, row.sha256 = lease.id, payload, sha256
    verdict = _judge(session, study, spec, trial, row, held.done)
    goes_on = verdict.decision == "continue"
    stays = more and held.worker.drain is None and (not goes_on or study.state == StudyState.RUNNING)
    following = _known_next(session, study, spec, trial, held) if stays and goes_on else None
    # Mostly there is one, and the fold is counted and the next leased in one statement.
    lease_of_next = None if following is None else _new_lease(trial, following, held.worker.id, settings)
    _store(session, study, trial, row, verdict, lease_of_next)
    if not stays:
        return verdict
    if lease_of_next is not None:
        _log_leased(study, trial, lease_of_next, held.worker.name)
        assignment = _assignment(session, study, trial, lease_of_next, settings)
        return verdict.model_copy(update={"next": assignment})
    if goes_on:
        following, reused = _next_to_run(session, study, spec, trial)
        if reused is not None:
            verdict = reused
            this = update(ResultRow).where(ResultRow.trial_id == trial.id, ResultRow.fold == lease.fold)
            session.execute(this.values(verdict=verdict.model_dump(mode="json")))
    request = _same_work(held.worker, study, spec)
    granted = (
        _lease(session, study, trial, following, request.worker, settings)
        if following is not None
        else _grant_any(session, request, settings)
    )
    return verdict.model_copy(update={"next": granted})


def heartbeat(
    session: Session, key: LeaseKey, beat: Heartbeat, settings: CoordinatorSettings
) -> HeartbeatReply:
    """Renew a lease whose worker makes progress, and tell the worker what to do.

    A step counter that stands still for longer than the stall limit is not renewed. A lease that lapsed and
    was not granted again is taken up anew.

    Raises:
        NotFound, TokenRefused: no such lease, or not its secret.
    """
    held = _authorise(session, key)
    lease, trial = held.lease, held.trial
    session.execute(
        update(WorkerRow).where(WorkerRow.id == lease.worker_id).values(last_seen=func.clock_timestamp())
    )
    try:
        _check_current(held)
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
    session.execute(
        update(FoldRow)
        .where(FoldRow.trial_id == trial.id, FoldRow.fold == lease.fold)
        .values(state=FoldState.LEASED)
    )
    return HeartbeatReply(command="continue", lease_seconds=settings.lease_seconds)


def release(session: Session, key: LeaseKey) -> None:
    """Give a fold back unharmed: a worker that shuts down, or that changed its mind.

    Raises:
        NotFound, TokenRefused: no such lease, or not its secret.
    """
    held = _authorise(session, key)
    if held.lease.outcome is None:
        _end_lease(session, held.lease, "released")
        log.info("fold_released", trial=held.trial.number, fold=held.lease.fold)


def fail(session: Session, key: LeaseKey, failure: Failure) -> None:
    """Take note that a fold could not be run.

    `environment`: the worker's fault; the fold is pending again. `trial`: the configuration's fault; the
    second such report fails the trial.

    Raises:
        NotFound, TokenRefused: no such lease, or not its secret.
        LeaseSuperseded: the fold is someone else's by now.
    """
    held = _authorise(session, key)
    lease, trial = held.lease, held.trial
    if lease.outcome in {"environment", "trial"}:
        return
    _check_current(held)
    lease.message = failure.message
    _end_lease(session, lease, failure.kind)
    log.warning("fold_failed", trial=trial.number, fold=lease.fold, kind=failure.kind, message=failure.message)
    session.flush()
    reports = _count_outcomes(session, trial.id, lease.fold, "trial")
    if failure.kind == "trial" and reports >= TRIAL_FAILURES_ALLOWED:
        _fail_trial(session, trial, lease.fold, failure.message)


def drain(session: Session, worker: str, *, now: bool) -> None:
    """Let a worker end: after the fold that it runs, or at once, giving it back. Repeating it changes nothing.

    Args:
        session: whose transaction it is.
        worker: its id, or its name if only one worker of this name was heard of lately.
        now: whether it should not finish its fold.

    Raises:
        NotFound: there is no such worker.
        Conflict: there are several.
    """
    lately = WorkerRow.last_seen > func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, NAMED_SECONDS)
    by_name = and_(WorkerRow.name == worker, lately)
    found = session.scalars(select(WorkerRow).where(or_(WorkerRow.id == worker, by_name))).all()
    if not found:
        raise NotFound(f"there is no worker {worker!r}; `foldwise workers list` shows them", field="worker")
    if len(found) > 1:
        ids = ", ".join(row.id for row in found)
        raise Conflict(f"there are {len(found)} workers {worker!r}; name one by its id: {ids}", field="worker")
    found[0].drain = "now" if now else "after"
    log.info("worker_drained", worker=found[0].name, now=now)


def end_worker(session: Session, name: str, pod_uid: str, *, disrupted: bool) -> int:
    """End the leases of the worker in a pod that is gone; how many there were.

    A pod that was taken away (`disrupted`) gives its fold back unharmed. One that died counts as a lease that
    lapsed, so that a fold that kills its workers is found out.
    """
    of_pod = select(WorkerRow.id).where(
        or_(WorkerRow.pod_uid == pod_uid, and_(WorkerRow.pod_uid.is_(None), WorkerRow.name == name))
    )
    theirs = LeaseRow.worker_id.in_(of_pod)
    live = session.scalars(select(LeaseRow.id).where(theirs, LeaseRow.outcome.is_(None))).all()
    if disrupted:
        _end_leases(session, theirs, "released")
    elif live:
        # The leader's next round finds them lapsed, and counts them.
        session.execute(
            update(LeaseRow)
            .where(LeaseRow.id.in_(live), LeaseRow.outcome.is_(None))
            .values(expires_at=func.clock_timestamp())
        )
    return len(live)


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
    if count != number or number >= parsed_spec(study).trials:
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
    index = func.generate_series(0, study.fold_count - 1).column_valued("index")
    folds = select(literal(trial.id), index, literal(FoldState.PENDING.value), literal(0))
    session.execute(insert(FoldRow).from_select(["trial_id", "fold", "state", "term"], folds))
    _changed(session, trial)
    return trial


def cancel_trial(session: Session, trial_id: int, reason: str) -> None:
    """End a trial of a stopped study, and its leases, if it has not ended. One trial per transaction."""
    trial = _lock_trial(session, trial_id)
    if not TrialState(trial.state).over:
        _end_trial(session, trial, TrialState.CANCELLED, reason)


def overdue_trials(session: Session) -> Sequence[tuple[int, str]]:
    """Ids of the running trials that are past their study's `trial_seconds`, and the reason to cancel them.

    The time of a trial runs from its first lease, through pauses too.
    """
    limit = type_coerce(StudyRow.spec, JSON)["trial_seconds"].as_float()
    begun = select(func.min(LeaseRow.granted_at)).where(LeaseRow.trial_id == TrialRow.id).scalar_subquery()
    overdue = session.execute(
        select(TrialRow.id, limit)
        .join(StudyRow, StudyRow.id == TrialRow.study_id)
        .where(
            StudyRow.state == StudyState.RUNNING,
            limit.is_not(None),
            TrialRow.state == TrialState.RUNNING,
            begun < func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, limit),
        )
        .order_by(TrialRow.id)
    )
    return [(trial_id, f"trial_seconds: {seconds:g} s since its first lease") for trial_id, seconds in overdue]


def imported_result(
    study: StudyRow, spec: StudySpec, trial: TrialRow, split: StudyFoldRow, payload: dict[str, Any]
) -> ResultRow:
    """Another coordinator's result, checked and scored as `report` does it; not added to a session.

    Raises:
        InvalidInput: it is no result, does not fit the fold's clips and classes, or is that of another task.
    """
    try:
        result = FoldResult.model_validate(payload)
    except ValidationError as error:
        raise InvalidInput(first_problem(error), field="payload") from error
    _check_result(result, split, fold_task(study, spec, trial, split))
    row = _scored(study, spec, trial, split, result)
    row.imported, row.payload, row.sha256, row.verdict = True, payload, sha256_of(payload), {}
    return row


def reused_result(trial: TrialRow, ran: ResultRow) -> ResultRow:
    """The result of a fold that a trial with equal parameters ran, for `trial`; not added to a session."""
    return ResultRow(
        trial_id=trial.id,
        fold=ran.fold,
        reused_from=ran.trial_id,
        sha256=ran.sha256,
        payload=ran.payload,
        best_epoch=ran.best_epoch,
        correct=ran.correct,
        clips=ran.clips,
        confusion=ran.confusion,
    )


def abandon_leases(session: Session, study: StudyRow) -> None:
    """End the live leases of a study; their workers learn it with their next word."""
    of_study = select(TrialRow.id).where(TrialRow.study_id == study.id)
    _end_leases(session, LeaseRow.trial_id.in_(of_study), "abandoned")


def complete_if_done(session: Session, study_id: int) -> None:
    """Complete a running study whose whole budget of trials has ended."""
    study = lock_study(session, study_id)
    if study.state not in {StudyState.RUNNING, StudyState.PAUSED}:
        return
    of_study = select(TrialRow.id).where(TrialRow.study_id == study_id)
    if session.scalar(of_study.where(_is_open()).limit(1)) is not None:
        return
    total = session.scalar(select(func.count()).select_from(of_study.subquery())) or 0
    if total < parsed_spec(study).trials:
        return
    study.state = StudyState.COMPLETE
    tell(session, study.id, EventKind.STUDY_MOVED, state=StudyState.COMPLETE.value, reason=None)
    log.info("study_complete", study=study.name, trials=total)


# --- Granting ---------------------------------------------------------------------------------------------


def _grant_any(session: Session, request: ClaimRequest, settings: CoordinatorSettings) -> FoldAssignment | None:
    live = _live_leases().scalar_subquery()
    pending = exists().where(FoldRow.trial_id == TrialRow.id, FoldRow.state == _PENDING)
    wanted = (
        select(TrialRow)
        .join(StudyRow, StudyRow.id == TrialRow.study_id)
        .where(
            StudyRow.state == StudyState.RUNNING,
            StudyRow.fingerprint.in_(request.caches),
            _planned(request.plans),
            _kept(request.keeps_models),
            _is_open(),
            live < _workers_per_trial(),
            pending,
        )
        # A trial left alone by its worker, then a new one, then one that can use help.
        .order_by(
            StudyRow.priority.desc(),
            case((live > 0, 2), (TrialRow.state == TrialState.READY, 1), else_=0),
            StudyRow.id,
            TrialRow.number,
        )
        .limit(1)
        .with_for_update(of=TrialRow, skip_locked=True)
        .execution_options(populate_existing=True)
    )
    if request.study is not None:
        wanted = wanted.where(StudyRow.name == request.study)
    while (trial := session.scalar(wanted)) is not None:
        study = session.get_one(StudyRow, trial.study_id)
        spec = parsed_spec(study)
        # The query's snapshot may be older than the lock it took: look again at what others committed.
        if not _has_room(session, trial, spec):
            continue
        following, _ = _next_to_run(session, study, spec, trial)
        if following is not None:
            return _lease(session, study, trial, following, request.worker, settings)
        # Its end locked its study; another study's is not to be wanted in the same transaction.
        wanted = wanted.where(StudyRow.id == study.id)
    return None


def _is_open() -> ColumnElement[bool]:
    return TrialRow.state.in_([TrialState.READY, TrialState.RUNNING])


def _live_leases() -> Select[int]:
    """How many folds of the trial in the surrounding query are held."""
    live = select(func.count()).select_from(LeaseRow).correlate(TrialRow)
    return live.where(LeaseRow.trial_id == TrialRow.id, LeaseRow.outcome.is_(None))


def _workers_per_trial() -> ColumnElement[int]:
    # A study made before this setting was there has one.
    return func.coalesce(type_coerce(StudyRow.spec, JSON)["workers_per_trial"].as_integer(), 1)


def _planned(plans: Sequence[ComputePlan]) -> ColumnElement[bool]:
    precision = type_coerce(StudyRow.spec, JSON)["compute", "precision"].as_string()
    compiled = type_coerce(StudyRow.spec, JSON)["compute", "compiled"].as_boolean()
    return or_(false(), *(and_(precision == plan.precision, compiled.is_(plan.compiled)) for plan in plans))


def _kept(keeps_models: bool) -> ColumnElement[bool]:
    # What is trained on all clips is of use only where the model can be kept.
    kind = type_coerce(StudyRow.spec, JSON)["protocol", "kind"].as_string()
    return true() if keeps_models else kind != AllClips().kind


def _same_work(worker: WorkerRow, study: StudyRow, spec: StudySpec) -> ClaimRequest:
    """What a worker would claim that has just run a fold of this study."""
    return ClaimRequest(
        worker=WorkerInfo(id=worker.id, name=worker.name, device=worker.device),
        study=study.name,
        caches=(study.fingerprint,),
        plans=(spec.compute,),
        keeps_models=isinstance(spec.protocol, AllClips),
    )


def _has_room(session: Session, trial: TrialRow, spec: StudySpec) -> bool:
    if TrialState(trial.state).over:
        return False
    held = session.scalar(_live_leases().where(LeaseRow.trial_id == trial.id).correlate(None))
    return (held or 0) < spec.workers_per_trial


def _lease(
    session: Session,
    study: StudyRow,
    trial: TrialRow,
    following: _NextFold,
    worker: WorkerInfo,
    settings: CoordinatorSettings,
) -> FoldAssignment:
    if trial.state != TrialState.RUNNING:
        trial.state = TrialState.RUNNING
    lease = _new_lease(trial, following, worker.id, settings)
    lease_fold(session, lease)
    _log_leased(study, trial, lease, worker.name)
    return _assignment(session, study, trial, lease, settings)


def _new_lease(
    trial: TrialRow, following: _NextFold, worker_id: str, settings: CoordinatorSettings
) -> NewLease:
    return NewLease(
        id=str(uuid.uuid4()),
        trial_id=trial.id,
        fold=following.fold,
        term=following.last_term + 1,
        secret=secrets.token_urlsafe(24),
        worker_id=worker_id,
        seconds=settings.lease_seconds,
    )


def _log_leased(study: StudyRow, trial: TrialRow, lease: NewLease, worker_name: str) -> None:
    log.info(
        "fold_leased",
        study=study.name,
        trial=trial.number,
        fold=f"{lease.fold + 1}/{study.fold_count}",
        term=lease.term,
        worker=worker_name,
    )


def _assignment(
    session: Session,
    study: StudyRow,
    trial: TrialRow,
    lease: NewLease | LeaseRow,
    settings: CoordinatorSettings,
) -> FoldAssignment:
    split = study_split(session, study)[lease.fold]
    return FoldAssignment(
        lease=Lease(
            id=LeaseId(lease.id),
            term=lease.term,
            secret=lease.secret,
            seconds=settings.lease_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
        ),
        **dict(fold_task(study, parsed_spec(study), trial, split)),
    )


def _same_answer(session: Session, answered: ClaimRow, settings: CoordinatorSettings) -> FoldAssignment:
    lease = session.get_one(LeaseRow, answered.lease_id)
    trial = _lock_trial(session, lease.trial_id)
    session.refresh(lease)
    if lease.outcome is not None:
        raise LeaseSuperseded("this claim was answered with a lease that has ended; claim again with a new key")
    study = session.get_one(StudyRow, trial.study_id)
    return _assignment(session, study, trial, lease, settings)


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
    spec = parsed_spec(study)
    if isinstance(spec.protocol, AllClips) and not request.keeps_models:
        raise CacheMismatch(
            f"study {name} trains a model to keep, and this worker has no model catalogue that it can write "
            "to; give it --models",
            field="keeps_models",
        )
    plan = spec.compute
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
) -> tuple[_NextFold | None, Verdict | None]:
    """Count the trial's next folds as long as a trial with equal parameters has run them.

    Equal parameters mean equal seeds on equal clips, so running them again would give the same results. They
    are judged one by one, as if they were.

    Returns:
        The fold to run next, None when the trial has ended or others hold the rest; and the verdict on the
        last one counted, if any.
    """
    if trial.state == TrialState.READY:
        trial.learnt_order = study.fold_order is not None
    verdict = None
    while (following := _next_fold(session, study, spec, trial)) is not None:
        if following.equal is None:
            return following, verdict
        done = fold_counts(session, [trial.id])[trial.id]
        row = reused_result(trial, following.equal)
        verdict = _judge(session, study, spec, trial, row, done)
        _store(session, study, trial, row, verdict)
        if verdict.decision != "continue":
            break
    return None, verdict


@dataclass(frozen=True, kw_only=True)
class _NextFold:
    """A pending fold whose trial is locked."""

    fold: int
    last_term: int
    equal: ResultRow | None = None
    """What a trial with equal parameters got when it ran this fold, where that may be used."""


def _known_next(
    session: Session, study: StudyRow, spec: StudySpec, trial: TrialRow, held: _Held
) -> _NextFold | None:
    """The trial's next fold by what was read with the lease; None where that does not say it."""
    if not held.pending or (held.has_equals and spec.economies.reuse_folds):
        return None
    order = fold_order.order_of(session, study, trial)
    fold = next(fold for fold in order if fold in held.pending)
    return _NextFold(fold=fold, last_term=held.pending[fold])


def _next_fold(session: Session, study: StudyRow, spec: StudySpec, trial: TrialRow) -> _NextFold | None:
    found = session.execute(
        _NEXT_FOLD,
        {
            "study_id": study.id,
            "trial_id": trial.id,
            "parameters_hash": trial.parameters_hash,
            "order": list(fold_order.order_of(session, study, trial)) if trial.learnt_order else None,
        },
    ).one_or_none()
    if found is None:
        return None
    fold, last_term, equal_trials = found
    equal = None
    if equal_trials and spec.economies.reuse_folds:
        equal = session.scalar(_EQUAL, {"trials": equal_trials, "fold": fold})
    return _NextFold(fold=fold, last_term=last_term, equal=equal)


_NEXT_FOLD = (
    select(
        FoldRow.fold,
        FoldRow.term,
        select(func.array_agg(TrialRow.id))
        .where(
            TrialRow.study_id == bindparam("study_id"),
            TrialRow.parameters_hash == bindparam("parameters_hash"),
            TrialRow.id != bindparam("trial_id"),
        )
        .scalar_subquery(),
    )
    .where(FoldRow.trial_id == bindparam("trial_id"), FoldRow.state == _PENDING)
    # Without an order, by index.
    .order_by(func.array_position(bindparam("order", type_=ARRAY(Integer)), FoldRow.fold), FoldRow.fold)
    .limit(1)
)
# Not joined to the above: PostgreSQL keeps a plan from when there were few results, and then looks through all.
_EQUAL = (
    select(ResultRow)
    .where(
        ResultRow.trial_id.in_(bindparam("trials", expanding=True)),
        ResultRow.fold == bindparam("fold"),
        ResultRow.reused_from.is_(None),
    )
    .order_by(ResultRow.trial_id)
    .limit(1)
)


def _scored(
    study: StudyRow, spec: StudySpec, trial: TrialRow, split: StudyFoldRow, result: FoldResult
) -> ResultRow:
    """What a result is worth; where it comes from is its caller's to say."""
    epochs = [epoch.predicted for epoch in result.epochs]
    # A model is the network after its last epoch, and held-out clips are to choose none.
    first = len(epochs) - 1 if isinstance(spec.protocol, AllClips | HeldOut) else 0
    best, correct = scores.best_epoch(split.labels, epochs[first:])
    best += first
    return ResultRow(
        trial_id=trial.id,
        fold=split.fold,
        best_epoch=best,
        correct=correct,
        clips=len(split.labels),
        confusion=scores.confusion(split.labels, epochs[best], len(study.classes)).tolist(),
    )


def _judge(
    session: Session,
    study: StudyRow,
    spec: StudySpec,
    trial: TrialRow,
    row: ResultRow,
    before: Sequence[FoldCount],
) -> Verdict:
    """Decide on a trial by a fold that is done and not stored yet; `before` was done already."""
    done = [*before, FoldCount(fold=row.fold, correct=row.correct, clips=row.clips)]
    order = fold_order.order_of(session, study, trial)
    progress = pruning.TrialProgress(
        fold=row.fold,
        order=order,
        prefix=finished_prefix(done, order),
        correct=sum(count.correct for count in done),
        clips_done=sum(count.clips for count in done),
        clips_total=study.clips,
    )
    complete = progress.clips_done == progress.clips_total
    pruned = None
    if not complete and not fold_order.still_learning(study, spec):
        pruned = pruning.decide(spec, progress, fold_table(session, study, trial, row))
    return Verdict(
        decision="complete" if complete else "pruned" if pruned else "continue",
        trial_accuracy=progress.correct / progress.clips_done,
        pruned=pruned,
    )


def _store(
    session: Session,
    study: StudyRow,
    trial: TrialRow,
    row: ResultRow,
    verdict: Verdict,
    lease_of_next: NewLease | None = None,
) -> None:
    """Store the result of a fold with the verdict on its trial, which may end it, and the lease of its next."""
    row.verdict = verdict.model_dump(mode="json")
    told = {
        "trial": trial.number,
        "fold": row.fold,
        "correct": row.correct,
        "clips": row.clips,
        "trial_accuracy": verdict.trial_accuracy,
        "reused": row.reused_from is not None,
    }
    count_fold(session, study.id, row, told, lease_of_next)
    if verdict.decision == "complete":
        lock_study(session, study.id)
        trial.value, trial.completed = verdict.trial_accuracy, next_completed(session, study.id)
        _end_trial(session, trial, TrialState.COMPLETE, None)
        if parsed_spec(study).fold_order == "hardest_first":
            fold_order.learn(session, study.id)
    elif verdict.pruned is not None:
        trial.pruned = verdict.pruned.model_dump(mode="json")
        reason = f"rule {verdict.pruned.rule} after fold {verdict.pruned.fold}"
        _end_trial(session, trial, TrialState.PRUNED, reason)
    log.info(
        "fold_accepted" if row.reused_from is None else "fold_reused",
        study=study.name,
        trial=trial.number,
        fold=f"{row.fold + 1}/{study.fold_count}",
        correct=f"{row.correct}/{row.clips}",
        trial_accuracy=round(verdict.trial_accuracy, 4),
        decision=verdict.decision,
    )


def _check_result(result: FoldResult, split: StudyFoldRow, task: FoldTask) -> None:
    if (result.model is not None) != task.trains_on_all:
        what = "names no model" if task.trains_on_all else "names a model"
        raise InvalidInput(
            f"model: the result {what}, and the fold {task.fold_name!r} is otherwise", field="model"
        )
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
    tell(
        session,
        trial.study_id,
        EventKind.TRIAL_ENDED,
        trial=trial.number,
        state=state.value,
        value=trial.value,
        reason=reason,
    )
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


@dataclass(frozen=True, kw_only=True)
class _Held:
    """What a call on a lease is about, read while its trial is locked."""

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

    has_equals: bool
    """Whether the study has other trials with equal parameters."""


_Done, _Pending, _Equal = aliased(ResultRow), aliased(FoldRow), aliased(TrialRow)


def _authorise(session: Session, key: LeaseKey) -> _Held:
    if session.execute(_LOCK_BY_LEASE, {"lease_id": key.id}).one_or_none() is None:
        raise NotFound(f"there is no lease {key.id}", field="lease")
    # Asked only now: before the lock was ours, others may have changed all of it.
    held = session.execute(_HELD, {"lease_id": key.id}).one()
    lease, trial, fold, result, study, worker, done, pending, has_equals = held
    if lease.term != key.term or not compare_digest(lease.secret.encode(), key.secret.encode()):
        raise TokenRefused(f"term or secret of lease {key.id} is wrong", field="lease")
    return _Held(
        lease=lease,
        trial=trial,
        fold=fold,
        result=result,
        study=study,
        worker=worker,
        done=[FoldCount(fold=fold, correct=correct, clips=clips) for fold, correct, clips in done or ()],
        pending=dict(pending or ()),
        has_equals=has_equals,
    )


_LOCK_BY_LEASE = (
    select(TrialRow.id)
    .where(
        TrialRow.id == select(LeaseRow.trial_id).where(LeaseRow.id == bindparam("lease_id")).scalar_subquery()
    )
    .with_for_update()
)
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
        # That of a lease that lapsed is pending too, and done with the result that comes late.
        .where(
            _Pending.trial_id == LeaseRow.trial_id,
            _Pending.fold != LeaseRow.fold,
            _Pending.state == _PENDING,
        )
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
    # Columns that no call on a lease asks for are not read: each costs.
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


def _check_current(held: _Held) -> None:
    lease, trial, fold = held.lease, held.trial, held.fold
    if TrialState(trial.state).over:
        raise LeaseSuperseded(f"trial {trial.number} is already {trial.state}")
    if fold.state == FoldState.DONE:
        raise LeaseSuperseded(f"fold {lease.fold} of trial {trial.number} is already counted")
    if fold.term != lease.term or lease.outcome == "superseded":
        raise LeaseSuperseded(
            f"fold {lease.fold} of trial {trial.number} was granted again in term {fold.term}"
        )


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
    session.execute(insert(OutboxRow).values(trial_id=trial.id).inline())


def _from_now(seconds: float) -> ColumnElement[Any]:
    return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def _still_within(seconds: float) -> ColumnElement[bool]:
    return LeaseRow.step_at > func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, seconds)
