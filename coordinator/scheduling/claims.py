"""Granting leases: which pending fold a worker gets, and the task that it runs."""

from __future__ import annotations

import secrets
import uuid

import structlog
from sqlalchemy import (
    JSON,
    ColumnElement,
    Select,
    and_,
    case,
    delete,
    exists,
    func,
    not_,
    or_,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from coordinator.scheduling.counting import NextFold, next_to_run
from coordinator.scheduling.leases import PENDING, end_leases, lock_trial
from coordinator.scheduling.plans import (
    Abilities,
    agree_on_plan,
    can_serve,
    check_plan,
    needs_validation_protocol,
)
from coordinator.scheduling.workers import see_worker
from coordinator.settings import CoordinatorSettings
from coordinator.store.conditions import is_open, seconds
from coordinator.store.fold_writes import NewLease, lease_fold
from coordinator.store.folds import fold_task, plan_of
from coordinator.store.studies import parsed_spec, study_split
from coordinator.store.tables import (
    ClaimRow,
    FoldRow,
    LeaseRow,
    StudyRow,
    TrialRow,
    WorkerRow,
)
from services.contracts import (
    ClaimRequest,
    FoldAssignment,
    Lease,
    LeaseId,
    StudySpec,
    StudyState,
    TrialState,
    WorkerInfo,
)
from services.contracts.protocol import PROTOCOL, VALIDATION_CLIPS
from services.errors import (
    CacheMismatch,
    LeaseSuperseded,
    NotFound,
    StudyOver,
    WorkerDrained,
    WorkerTooOld,
)
from services.folds import AllClips

log = structlog.get_logger()

CLAIM_KEPT_SECONDS = 3600.0
"""Seconds that a claim which got no fold is remembered; no network delivers a request later."""


def claim(
    session: Session,
    request: ClaimRequest,
    key: str,
    settings: CoordinatorSettings,
    *,
    threads: int | None = None,
    protocol: int = PROTOCOL,
    pod_uid: str | None = None,
) -> FoldAssignment | None:
    """Lease a pending fold to a worker, or None when there is nothing to do now.

    Studies with the highest priority come first. Among studies of equal priority, running trials without a
    worker come first, then ready trials, then running trials of which other workers hold folds. Last come
    trials that have as many workers as their study wants, in studies in which no trial can start. The same
    `key` gets the same lease. A worker runs one fold at a time: a claim with a new key releases the fold that
    the worker held.

    Args:
        session: the caller's open transaction.
        request: what the worker can run.
        key: idempotency key of the claim.
        settings: the coordinator's settings.
        threads: CPU threads with which the worker would train; see `Abilities`.
        protocol: version of the protocol that the worker speaks.
        pod_uid: uid of the worker's Kubernetes pod, recorded with the worker's first claim.

    Raises:
        LeaseSuperseded: `key` was answered without a fold, or with a lease that is no longer current.
        StudyOver: the named study has ended.
        NotFound: the named study does not exist.
        CacheMismatch: the worker cannot read the cache of the named study.
        PlanNotSound: the worker cannot compute as the named study needs it.
        WorkerTooOld: the worker does not know the validation clips or the split of the named study.
        WorkerDrained: the worker was drained.
    """
    see_worker(session, request.worker, pod_uid)
    answered = session.get(ClaimRow, key)
    if answered is not None:
        return _replay_claim(session, answered, settings)
    if session.scalar(select(WorkerRow.drain).where(WorkerRow.id == request.worker.id)) is not None:
        raise WorkerDrained(f"worker {request.worker.name} was drained and gets no more folds")
    able = Abilities(plans=request.plans, device=request.worker.device, threads=threads, protocol=protocol)
    if request.study is not None:
        _check_named_study(session, request.study, request, able)
    end_leases(session, LeaseRow.worker_id == request.worker.id, "superseded")
    assignment = grant_any(session, request, able, settings)
    if assignment is not None:
        session.execute(insert(ClaimRow).values(key=key, lease_id=assignment.lease.id))
    return assignment


def answer_without_fold(session: Session, key: str) -> None:
    """Record that a claim is answered without a fold.

    The network can deliver it again later, when its worker holds a fold from a later claim. Without this, the
    duplicate would take that fold away.
    """
    session.execute(insert(ClaimRow).values(key=key, lease_id=None).on_conflict_do_nothing())


def forget_claims_without_fold(session: Session) -> None:
    """Delete what `answer_without_fold` recorded more than `CLAIM_KEPT_SECONDS` ago."""
    before = func.clock_timestamp() - seconds(CLAIM_KEPT_SECONDS)
    session.execute(delete(ClaimRow).where(ClaimRow.lease_id.is_(None), ClaimRow.answered_at < before))


def grant_any(
    session: Session, request: ClaimRequest, able: Abilities, settings: CoordinatorSettings
) -> FoldAssignment | None:
    """Grant the pending fold that comes first for this request, or None when there is none."""
    live = _live_leases().scalar_subquery()
    has_room = live < _workers_per_trial()
    pending = exists().where(FoldRow.trial_id == TrialRow.id, FoldRow.state == PENDING)
    wanted = (
        select(TrialRow)
        .join(StudyRow, StudyRow.id == TrialRow.study_id)
        .where(
            StudyRow.state == StudyState.RUNNING,
            StudyRow.fingerprint.in_(request.caches),
            can_serve(able),
            _can_keep_models(request.keeps_models),
            is_open(),
            or_(has_room, _no_trial_can_start()),
            pending,
        )
        # A running trial without a worker, then a new one, then one that further workers can help with. Only
        # workers for which no study has any of them help beyond the limit.
        .order_by(
            not_(has_room),
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
        if not _can_take(session, trial, spec):
            continue
        if not agree_on_plan(session, study, spec, able):
            # It has locked the study, and one transaction must not lock two.
            wanted = wanted.where(StudyRow.id == study.id)
            continue
        following, _ = next_to_run(session, study, spec, trial)
        if following is not None:
            return grant_fold(session, study, trial, following, request.worker, settings)
        # The end of the trial locked its study, and one transaction must not lock two.
        wanted = wanted.where(StudyRow.id == study.id)
    return None


def grant_fold(
    session: Session,
    study: StudyRow,
    trial: TrialRow,
    following: NextFold,
    worker: WorkerInfo,
    settings: CoordinatorSettings,
) -> FoldAssignment:
    """Lease this fold to a worker, and set the trial running."""
    if trial.state != TrialState.RUNNING:
        trial.state = TrialState.RUNNING
    lease = new_lease(trial, following, worker.id, settings)
    lease_fold(session, lease)
    log_granted(study, trial, lease, worker.name)
    return assignment_of(session, study, trial, lease, settings)


def new_lease(trial: TrialRow, following: NextFold, worker_id: str, settings: CoordinatorSettings) -> NewLease:
    """A lease of this fold with the next term; the caller stores it."""
    return NewLease(
        id=str(uuid.uuid4()),
        trial_id=trial.id,
        fold=following.fold,
        term=following.last_term + 1,
        secret=secrets.token_urlsafe(24),
        worker_id=worker_id,
        seconds=settings.lease_seconds,
    )


def log_granted(study: StudyRow, trial: TrialRow, lease: NewLease, worker_name: str) -> None:
    """Log that a lease was granted."""
    log.info(
        "fold_leased",
        study=study.name,
        trial=trial.number,
        fold=f"{lease.fold + 1}/{study.fold_count}",
        term=lease.term,
        worker=worker_name,
    )


def assignment_of(
    session: Session,
    study: StudyRow,
    trial: TrialRow,
    lease: NewLease | LeaseRow,
    settings: CoordinatorSettings,
) -> FoldAssignment:
    """The lease and the task of its fold, as they are sent to the worker."""
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


def claim_for_same_study(worker: WorkerRow, study: StudyRow, spec: StudySpec) -> tuple[ClaimRequest, Abilities]:
    """The claim of a worker that has just run a fold of this study, for another fold of it."""
    plan = plan_of(study, spec)
    request = ClaimRequest(
        worker=WorkerInfo(id=worker.id, name=worker.name, device=worker.device),
        study=study.name,
        caches=(study.fingerprint,),
        plans=(plan.compute,),
        keeps_models=isinstance(spec.protocol, AllClips),
    )
    # Whatever the plan freezes, the worker has followed it.
    threads = None if plan.memory_format is None else plan.threads or 0
    return request, Abilities(plans=request.plans, device=worker.device, threads=threads)


def _replay_claim(session: Session, answered: ClaimRow, settings: CoordinatorSettings) -> FoldAssignment:
    if answered.lease_id is None:
        raise LeaseSuperseded("this claim was answered without a fold; claim again with a new key")
    lease = session.get_one(LeaseRow, answered.lease_id)
    trial = lock_trial(session, lease.trial_id)
    session.refresh(lease)
    if lease.outcome is not None:
        raise LeaseSuperseded("this claim was answered with a lease that has ended; claim again with a new key")
    study = session.get_one(StudyRow, trial.study_id)
    return assignment_of(session, study, trial, lease, settings)


def _check_named_study(session: Session, name: str, request: ClaimRequest, able: Abilities) -> None:
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
    needs = select(needs_validation_protocol()).select_from(StudyRow).where(StudyRow.id == study.id)
    if able.protocol < VALIDATION_CLIPS and session.scalar(needs):
        raise WorkerTooOld(
            f"study {name} has validation clips or a dataset's own split, which workers know from version "
            f"{VALIDATION_CLIPS} of the protocol on, and this worker speaks version {able.protocol}; run "
            "workers of the coordinator's version",
            field="study",
        )
    check_plan(session, study, spec, able)


def _live_leases() -> Select[int]:
    """The number of live leases of the trial in the surrounding query."""
    live = select(func.count()).select_from(LeaseRow).correlate(TrialRow)
    return live.where(LeaseRow.trial_id == TrialRow.id, LeaseRow.outcome.is_(None))


def _workers_per_trial() -> ColumnElement[int]:
    # Studies that were stored before this setting existed have one.
    return func.coalesce(type_coerce(StudyRow.spec, JSON)["workers_per_trial"].as_integer(), 1)


def _can_keep_models(keeps_models: bool) -> ColumnElement[bool]:
    # Training on all clips is useful only where the model can be kept.
    kind = type_coerce(StudyRow.spec, JSON)["protocol", "kind"].as_string()
    return true() if keeps_models else kind != AllClips().kind


def _no_trial_can_start() -> ColumnElement[bool]:
    """Whether the study in the surrounding query has a delay, lets workers help, and has no trial to start.

    The next trial waits for the end of the open trial of lowest number, or all trials have been suggested.
    """
    spec, others = type_coerce(StudyRow.spec, JSON), aliased(TrialRow)
    of_study = others.study_id == StudyRow.id
    is_open = others.state.in_([TrialState.READY.value, TrialState.RUNNING.value])
    following = select(func.max(others.number) + 1).where(of_study).correlate(StudyRow).scalar_subquery()
    lowest = select(func.min(others.number)).where(of_study, is_open).correlate(StudyRow).scalar_subquery()
    delay = spec["feedback_delay"].as_integer()
    return and_(
        func.coalesce(spec["idle_workers_help"].as_boolean(), true()),
        delay.is_not(None),
        or_(following >= spec["trials"].as_integer(), lowest < following - delay),
    )


def _can_take(session: Session, trial: TrialRow, spec: StudySpec) -> bool:
    if TrialState(trial.state).over:
        return False
    held = session.scalar(_live_leases().where(LeaseRow.trial_id == trial.id).correlate(None))
    if (held or 0) < spec.workers_per_trial:
        return True
    waits = select(StudyRow.id).where(StudyRow.id == trial.study_id, _no_trial_can_start())
    return session.scalar(waits) is not None
