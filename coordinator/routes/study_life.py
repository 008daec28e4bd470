"""What people do with a study beside running it: extend, clone, move to another coordinator, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from tempfile import TemporaryFile
from typing import IO, Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

from coordinator.access.gate import require_by_method
from coordinator.access.problems import problems
from coordinator.routes.transactions import Settings, Transaction, WakeLeader
from coordinator.runtime import CurrentRuntime, Runtime
from coordinator.store import views
from coordinator.store.studies import get_study
from coordinator.studies import life
from coordinator.studies.deletion import delete_study
from coordinator.studies.export_file import export_lines
from coordinator.studies.final_training import final_spec
from coordinator.studies.import_file import import_study, lines_of
from services.contracts import Budget, Clone, Enqueue, Enqueued, StudyName, StudyView, TrainFinal

router = APIRouter(
    prefix="/api/v1/studies",
    tags=["studies"],
    dependencies=[Depends(require_by_method)],
    responses=problems(400, 401, 403, 404, 409, 413, 422, 429, 503),
)

IMPORT_BYTES_ALLOWED = 4 * 2**30
"""Of a study file; 800 trials of 118 folds take about a tenth."""

JSON_LINES = "application/jsonl"

Name = Annotated[StudyName, Path()]


@router.post("/{name}/enqueue")
def enqueue(name: Name, wanted: Enqueue, session: Transaction, wake_leader: WakeLeader) -> Enqueued:
    """Run these configurations next, within the budget; they follow the trials that are made already."""
    numbers = life.enqueue(session, name, wanted.configurations)
    wake_leader()
    return Enqueued(numbers=numbers)


@router.post("/{name}/budget")
def budget(name: Name, wanted: Budget, session: Transaction, wake_leader: WakeLeader) -> StudyView:
    """Set how many trials the study runs in all; a complete one goes on when it is given more."""
    study = life.set_budget(session, name, wanted.trials)
    wake_leader()
    return views.study_view(session, study)


@router.post("/{name}/clone", status_code=201)
def clone(
    name: Name, wanted: Clone, session: Transaction, settings: Settings, wake_leader: WakeLeader
) -> StudyView:
    """Create a study of the same spec on the same clips, with changes; of the old one's trials it has none."""
    spec = life.cloned_spec(session, name, wanted)
    study = life.create(session, spec, settings.cache_root, settings.models_root)
    wake_leader()
    return views.study_view(session, study)


@router.post("/{name}/final", status_code=201)
def train_final(
    name: Name, wanted: TrainFinal, session: Transaction, settings: Settings, wake_leader: WakeLeader
) -> StudyView:
    """Create a study that trains the best configuration on all clips; the network is kept as a model."""
    spec = final_spec(session, name, wanted)
    study = life.create(session, spec, settings.cache_root, settings.models_root)
    wake_leader()
    return views.study_view(session, study)


@router.get("/{name}/export", response_class=StreamingResponse, responses={200: {"content": {JSON_LINES: {}}}})
def export(name: Name, runtime: CurrentRuntime, session: Transaction) -> StreamingResponse:
    """The study as JSON lines: itself, then its trials with every result."""
    get_study(session, name)
    return StreamingResponse(
        _exported(runtime, name),
        media_type=JSON_LINES,
        headers={"Content-Disposition": f'attachment; filename="{name}.jsonl"'},
    )


@router.post(
    "/import",
    status_code=201,
    max_body_size=IMPORT_BYTES_ALLOWED,
    openapi_extra={"requestBody": {"required": True, "content": {JSON_LINES: {"schema": {"type": "string"}}}}},
)
async def import_(
    request: Request, runtime: CurrentRuntime, name: Annotated[StudyName | None, Query()] = None
) -> StudyView:
    """Store a study from what `export` gave, under its name or another; a running one is paused."""
    with TemporaryFile() as file:
        # To disk first: a transaction does not wait for a client.
        async for chunk in request.stream():
            await run_in_threadpool(file.write, chunk)
        file.seek(0)
        view = await run_in_threadpool(_imported, runtime, file, name)
    runtime.leader.wake()
    return view


@router.delete("/{name}", status_code=204)
def delete(
    name: Name,
    session: Transaction,
    wake_leader: WakeLeader,
    confirm: Annotated[str | None, Query(max_length=100, description="the study's name again")] = None,
) -> None:
    """Delete a study that does not run, with all its trials and results."""
    delete_study(session, name, confirm)
    wake_leader()


async def _exported(runtime: Runtime, name: str) -> AsyncIterator[bytes]:
    # Each holds a connection for as long as its client takes.
    async with runtime.export_slots:
        async for line in iterate_in_threadpool(_lines(runtime.sessions, name)):
            yield line


def _lines(sessions: sessionmaker[Session], name: str) -> Iterator[bytes]:
    with sessions() as session:
        # One snapshot for all pages.
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        yield from export_lines(session, name)


def _imported(runtime: Runtime, file: IO[bytes], name: str | None) -> StudyView:
    with runtime.sessions.begin() as session:
        study = import_study(session, lines_of(file), runtime.settings.cache_root, name)
        return views.study_view(session, study)
