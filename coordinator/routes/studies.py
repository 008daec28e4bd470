"""What people and programs ask: studies, trials, folds, confusion."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query

from coordinator.access.gate import require_by_method
from coordinator.access.problems import problems
from coordinator.routes.transactions import Settings, Transaction, WakeLeader
from coordinator.runtime import CurrentRuntime
from coordinator.scheduling import leases
from coordinator.store import trial_results, views
from coordinator.store.studies import get_study
from coordinator.studies import life
from services.contracts import (
    PRINTABLE,
    ConfusionView,
    FoldRecord,
    FoldView,
    StudyName,
    StudySpec,
    StudyState,
    StudyView,
    TrialState,
    TrialView,
)

router = APIRouter(
    prefix="/api/v1/studies",
    tags=["studies"],
    dependencies=[Depends(require_by_method)],
    responses=problems(400, 401, 403, 404, 409, 413, 422, 429, 503),
)

Name = Annotated[StudyName, Path()]
Number = Annotated[int, Path(ge=0, lt=2**31)]


@router.post("", status_code=201)
def create(spec: StudySpec, session: Transaction, settings: Settings, wake_leader: WakeLeader) -> StudyView:
    """Create a study; it starts at once unless `start` is false."""
    study = life.create(session, spec, settings.cache_root, settings.models_root)
    wake_leader()
    return views.study_view(session, study)


@router.get("")
def list_all(
    session: Transaction,
    state: StudyState | None = None,
    after: Annotated[StudyName | None, Query(description="only studies made after this one")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> list[StudyView]:
    """Studies, oldest first; for the next page, `after` is the last name you have."""
    return views.list_studies(session, state=state, after=after, limit=limit)


@router.get("/{name}")
def show(name: Name, runtime: CurrentRuntime, session: Transaction) -> StudyView:
    """One study with its counts and its best trial, and why it has no workers if Kubernetes says so."""
    view = views.study_view(session, get_study(session, name))
    jobs = runtime.worker_jobs
    if jobs is None or view.state != StudyState.RUNNING:
        return view
    return view.model_copy(update={"stalled": jobs.stalled(name)})


@router.post("/{name}/start")
def start(name: Name, session: Transaction, wake_leader: WakeLeader) -> StudyView:
    """Start a draft."""
    study = life.start(session, name)
    wake_leader()
    return views.study_view(session, study)


@router.post("/{name}/pause")
def pause(name: Name, runtime: CurrentRuntime, now: bool = False) -> StudyView:
    """Pause: folds under way finish and count, or with `now` are abandoned."""
    with runtime.sessions.begin() as session:
        study = life.pause(session, name)
    if now:
        # A transaction of its own: trials are never locked by someone who holds their study's lock.
        with runtime.sessions.begin() as session:
            leases.abandon_leases(session, study)
    with runtime.sessions.begin() as session:
        return views.study_view(session, get_study(session, name))


@router.post("/{name}/resume")
def resume(name: Name, runtime: CurrentRuntime) -> StudyView:
    """Go on with a paused study; a running one whose Job has failed gets another."""
    with runtime.sessions.begin() as session:
        life.resume(session, name)
    runtime.leader.wake()
    if runtime.worker_jobs is not None:
        # Nobody waits for Kubernetes while the study is locked.
        runtime.worker_jobs.retry(name)
    with runtime.sessions.begin() as session:
        return views.study_view(session, get_study(session, name))


@router.post("/{name}/stop")
def stop(name: Name, session: Transaction, wake_leader: WakeLeader) -> StudyView:
    """End a study for good; what is done stays."""
    study = life.stop(session, name, "stopped by a person")
    wake_leader()
    return views.study_view(session, study)


@router.get("/{name}/trials")
def trials(
    name: Name,
    session: Transaction,
    state: TrialState | None = None,
    order: Annotated[Literal["number", "value"], Query(description="by value the best come first")] = "number",
    worker: Annotated[
        str | None, Query(max_length=128, pattern=PRINTABLE, description="that holds a fold")
    ] = None,
    after: Annotated[int, Query(ge=-1, lt=2**31, description="only what follows this trial")] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> list[TrialView]:
    """Trials in order of their number or value; for the next page, `after` is the last number you have."""
    study = get_study(session, name)
    return views.list_trials(session, study, state=state, order=order, worker=worker, after=after, limit=limit)


@router.get("/{name}/trials/{number}")
def trial(name: Name, number: Number, session: Transaction) -> TrialView:
    """One trial."""
    study = get_study(session, name)
    return views.trial_views(session, study, [views.get_trial(session, study, number)])[0]


@router.get("/{name}/trials/{number}/folds")
def folds(name: Name, number: Number, session: Transaction) -> list[FoldView]:
    """The folds of a trial."""
    study = get_study(session, name)
    return trial_results.fold_views(session, study, views.get_trial(session, study, number))


@router.get("/{name}/trials/{number}/folds/{index}")
def fold(name: Name, number: Number, index: Number, session: Transaction) -> FoldRecord:
    """A finished fold with everything that its result followed from; 409 while it has none."""
    study = get_study(session, name)
    return views.fold_record(session, study, views.get_trial(session, study, number), index)


@router.get("/{name}/trials/{number}/confusion")
def confusion(name: Name, number: Number, session: Transaction) -> ConfusionView:
    """Confusion counts over the finished folds of a trial."""
    study = get_study(session, name)
    return views.confusion_view(session, study, views.get_trial(session, study, number))
