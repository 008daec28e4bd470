"""Studies with their trials, folds and confusion counts; start, pause, resume and stop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query

from coordinator.access.authorization import require_by_method
from coordinator.access.problems import problems
from coordinator.routes import body_limits
from coordinator.routes.transactions import Settings, Transaction, WakeLeader
from coordinator.runtime import CurrentRuntime
from coordinator.scheduling import leases
from coordinator.store import trial_results, views
from coordinator.store.studies import get_study
from coordinator.store.troubles import study_troubles
from coordinator.studies import life
from coordinator.studies.data_warnings import data_warnings
from coordinator.studies.fitting import fit_to_cache
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


@router.post("", status_code=201, max_body_size=body_limits.SPEC_BYTES)
def create(spec: StudySpec, session: Transaction, settings: Settings, wake_leader: WakeLeader) -> StudyView:
    """Create a study; it starts at once unless `start` is false.

    A spec without `protocol` is fitted to its clip cache: protocol, frames, augmentation, trials and pruning.
    """
    spec = fit_to_cache(spec, settings.cache_root)
    study = life.create(session, spec, settings.cache_root, settings.models_root)
    wake_leader()
    warnings = data_warnings(session, study, settings.cache_root)
    return views.study_view(session, study).model_copy(update={"warnings": warnings})


@router.get("")
def list_all(
    session: Transaction,
    state: StudyState | None = None,
    after: Annotated[StudyName | None, Query(description="only studies created after this one")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> list[StudyView]:
    """List studies, oldest first; for the next page, set `after` to the last name received."""
    return views.list_studies(session, state=state, after=after, limit=limit)


@router.get("/{name}")
def show(name: Name, runtime: CurrentRuntime, session: Transaction) -> StudyView:
    """Get a study with its counts, its best trial, and what keeps it from getting on."""
    study = get_study(session, name)
    found: dict[str, Any] = {"troubles": study_troubles(session, study)}
    jobs = runtime.worker_jobs
    if jobs is not None and study.state == StudyState.RUNNING:
        found["stalled"] = jobs.stalled(name)
    return views.study_view(session, study).model_copy(update=found)


@router.post("/{name}/start")
def start(name: Name, session: Transaction, wake_leader: WakeLeader) -> StudyView:
    """Start a draft study."""
    study = life.start(session, name)
    wake_leader()
    return views.study_view(session, study)


@router.post("/{name}/pause")
def pause(name: Name, runtime: CurrentRuntime, now: bool = False) -> StudyView:
    """Pause a study: running folds finish and count; with `now`, they are abandoned."""
    with runtime.sessions.begin() as session:
        study = life.pause(session, name)
    if now:
        # A separate transaction, because the lock order is trials before their study.
        with runtime.sessions.begin() as session:
            leases.abandon_leases(session, study)
    with runtime.sessions.begin() as session:
        return views.study_view(session, get_study(session, name))


@router.post("/{name}/resume")
def resume(name: Name, runtime: CurrentRuntime) -> StudyView:
    """Resume a paused study; a running study whose Job has failed gets a new Job."""
    with runtime.sessions.begin() as session:
        life.resume(session, name)
    runtime.leader.wake()
    if runtime.worker_jobs is not None:
        # After the commit, so that the study is not locked while Kubernetes answers.
        runtime.worker_jobs.retry(name)
    with runtime.sessions.begin() as session:
        return views.study_view(session, get_study(session, name))


@router.post("/{name}/stop")
def stop(name: Name, session: Transaction, wake_leader: WakeLeader) -> StudyView:
    """Stop a study permanently; finished folds and trials are kept."""
    study = life.stop(session, name, "stopped by a person")
    wake_leader()
    return views.study_view(session, study)


@router.get("/{name}/trials")
def trials(
    name: Name,
    session: Transaction,
    state: TrialState | None = None,
    order: Annotated[Literal["number", "value"], Query(description="value: best trial first")] = "number",
    worker: Annotated[
        str | None,
        Query(max_length=128, pattern=PRINTABLE, description="only trials with a fold leased to this worker"),
    ] = None,
    after: Annotated[int, Query(ge=-1, lt=2**31, description="only trials after this one in the order")] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> list[TrialView]:
    """List trials by number or by value; for the next page, set `after` to the last number received."""
    study = get_study(session, name)
    return views.list_trials(session, study, state=state, order=order, worker=worker, after=after, limit=limit)


@router.get("/{name}/trials/{number}")
def trial(name: Name, number: Number, session: Transaction) -> TrialView:
    """Get a trial."""
    study = get_study(session, name)
    return views.trial_views(session, study, [views.get_trial(session, study, number)])[0]


@router.get("/{name}/trials/{number}/folds")
def folds(name: Name, number: Number, session: Transaction) -> list[FoldView]:
    """List the folds of a trial."""
    study = get_study(session, name)
    return trial_results.fold_views(session, study, views.get_trial(session, study, number))


@router.get("/{name}/trials/{number}/folds/{index}")
def fold(name: Name, number: Number, index: Number, session: Transaction) -> FoldRecord:
    """Get a finished fold with its result and everything the result depends on; 409 while it has no result."""
    study = get_study(session, name)
    return views.fold_record(session, study, views.get_trial(session, study, number), index)


@router.get("/{name}/trials/{number}/confusion")
def confusion(name: Name, number: Number, session: Transaction) -> ConfusionView:
    """Get the confusion counts over the finished folds of a trial."""
    study = get_study(session, name)
    return views.confusion_view(session, study, views.get_trial(session, study, number))
