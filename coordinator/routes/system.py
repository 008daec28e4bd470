"""What there is: datasets, workers, and whether this process is well."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from coordinator.access.gate import require, require_by_method
from coordinator.access.problems import problems
from coordinator.routes.transactions import Settings, Transaction
from coordinator.runtime import CurrentRuntime
from coordinator.scheduling.workers import drain as drain_worker
from coordinator.store import views
from services.clip_cache import list_caches
from services.contracts import PRINTABLE, DatasetView, TokenScope, WorkerView
from services.errors import Unavailable
from services.model_card import ModelCard
from services.model_catalogue import list_models
from services.revision import running_revision

router = APIRouter(tags=["system"])
for_people = APIRouter(
    prefix="/api/v1",
    tags=["system"],
    dependencies=[Depends(require_by_method)],
    responses=problems(401, 403, 422, 429, 503),
)


@router.get("/livez")
def alive() -> dict[str, str]:
    """The process answers. Never asks the database."""
    return {"status": "alive"}


@router.get("/readyz", responses=problems(503))
def ready(request: Request, runtime: CurrentRuntime) -> dict[str, str | bool | None]:
    """The database answers too; with what is running."""
    try:
        with runtime.sessions() as session:
            session.execute(text("SELECT 1 FROM foldwise.schema_version"))
    except SQLAlchemyError as error:
        raise Unavailable("the database does not answer") from error
    return {
        "status": "ready",
        "leader": runtime.leader.is_leader,
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
    """Metrics for Prometheus. Answers without the database too, and then says so."""
    return PlainTextResponse(generate_latest(runtime.metrics), media_type=CONTENT_TYPE_LATEST)


@for_people.get("/datasets")
def datasets(settings: Settings) -> list[DatasetView]:
    """The clip caches a study can name."""
    return [
        DatasetView(**manifest.model_dump(include=set(DatasetView.model_fields)))
        for manifest in list_caches(settings.cache_root)
    ]


@for_people.get("/models")
def models(settings: Settings) -> list[ModelCard]:
    """The models a study can start its training from, by id."""
    return list_models(settings.models_root) if settings.models_root is not None else []


@for_people.get("/workers")
def workers(
    runtime: CurrentRuntime, session: Transaction, seen_within: Annotated[float, Query(gt=0, le=1e9)] = 300.0
) -> list[WorkerView]:
    """Workers heard of in the last `seen_within` seconds, with their pods where they are known."""
    found = views.list_workers(session, seen_within=seen_within)
    jobs = runtime.worker_jobs
    pods = {} if jobs is None else {pod.name: pod for pod in jobs.pods()}
    return [worker.model_copy(update={"pod": pods.get(worker.name)}) for worker in found]


@for_people.post("/workers/{worker}/drain", status_code=204, responses=problems(404, 409))
def drain(
    worker: Annotated[str, Path(max_length=200, pattern=PRINTABLE)], session: Transaction, now: bool = False
) -> None:
    """Let a worker end, by its id or name: after the fold it runs, or with `now` at once, giving it back."""
    drain_worker(session, worker, now=now)
