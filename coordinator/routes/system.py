"""Probes, metrics, datasets, models and workers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from coordinator.access.authorization import require, require_by_method
from coordinator.access.causes import cause_in_words, log_cause
from coordinator.access.problems import problems
from coordinator.routes.transactions import Settings, Transaction
from coordinator.runtime import CurrentRuntime
from coordinator.scheduling.workers import drain as drain_worker
from coordinator.store import views
from coordinator.store.leadership import leadership
from services.clip_cache import list_caches
from services.contracts import PRINTABLE, DatasetView, TokenScope, WorkerView
from services.errors import Unavailable
from services.model_card import ModelCard
from services.model_catalogue import list_models
from services.revision import running_revision

router = APIRouter(tags=["system"])
api_router = APIRouter(
    prefix="/api/v1",
    tags=["system"],
    dependencies=[Depends(require_by_method)],
    responses=problems(401, 403, 422, 429, 503),
)


@router.get("/livez")
async def alive() -> dict[str, str]:
    """Liveness probe: the process answers; the database is not queried."""
    # Not in a thread: all of them may wait for a database that does not answer.
    return {"status": "alive"}


@router.get("/readyz", responses=problems(503))
def ready(request: Request, runtime: CurrentRuntime) -> dict[str, str | bool | None]:
    """Readiness probe: the database answers.

    The reply has the version, whether this coordinator is the leader, and what is wrong with leadership.
    """
    try:
        with runtime.probes() as session:
            trouble = leadership(session).trouble
    except SQLAlchemyError as error:
        log_cause(error)
        raise Unavailable(cause_in_words(error)) from error
    return {
        "status": "ready",
        "leader": runtime.leader.is_leader,
        "trouble": trouble,
        "version": request.app.version,
        "revision": running_revision(),
    }


@router.get(
    "/metrics",
    dependencies=[Depends(require(TokenScope.READ))],
    response_class=PlainTextResponse,
    responses=problems(401, 403, 429, 503),
)
def metrics(runtime: CurrentRuntime) -> PlainTextResponse:
    """Get metrics for Prometheus; works without the database, `foldwise_database_up` is then 0."""
    return PlainTextResponse(generate_latest(runtime.metrics), media_type=CONTENT_TYPE_LATEST)


@api_router.get("/datasets")
def datasets(settings: Settings) -> list[DatasetView]:
    """List the clip caches that a study can use."""
    return [
        DatasetView(**manifest.model_dump(include=set(DatasetView.model_fields)))
        for manifest in list_caches(settings.cache_root)
    ]


@api_router.get("/models")
def models(settings: Settings) -> list[ModelCard]:
    """List the models from which a study can start its training, by id."""
    return list_models(settings.models_root) if settings.models_root is not None else []


@api_router.get("/workers")
def workers(
    runtime: CurrentRuntime, session: Transaction, seen_within: Annotated[float, Query(gt=0, le=1e9)] = 300.0
) -> list[WorkerView]:
    """List the workers that were in contact in the last `seen_within` seconds, with their pods if known."""
    found = views.list_workers(session, seen_within=seen_within)
    jobs = runtime.worker_jobs
    pods = {} if jobs is None else {pod.name: pod for pod in jobs.pods()}
    return [worker.model_copy(update={"pod": pods.get(worker.name)}) for worker in found]


@api_router.post("/workers/{worker}/drain", status_code=204, responses=problems(404, 409))
def drain(
    worker: Annotated[str, Path(max_length=200, pattern=PRINTABLE)], session: Transaction, now: bool = False
) -> None:
    """Drain a worker by id or name: it ends after its current fold, or with `now` gives it back at once."""
    drain_worker(session, worker, now=now)
