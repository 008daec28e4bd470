"""Actions on a study: enqueue, change the budget, clone, train a final model, export, import, delete."""

from __future__ import annotations

from collections.abc import Generator
from tempfile import TemporaryFile
from typing import IO, Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool

from coordinator.access.authorization import CallerOfRequest, require_by_method
from coordinator.access.exports import PAUSE_SECONDS, ExportResponse
from coordinator.access.problems import problems
from coordinator.routes import body_limits
from coordinator.routes.transactions import Settings, Transaction, WakeLeader, in_transaction
from coordinator.runtime import CurrentRuntime, Runtime
from coordinator.store import views
from coordinator.store.database import LONG_SECONDS
from coordinator.store.deadlines import allow, allow_pauses
from coordinator.store.studies import get_study
from coordinator.studies import life
from coordinator.studies.data_warnings import data_warnings
from coordinator.studies.deletion import delete_study
from coordinator.studies.export_file import export_lines
from coordinator.studies.final_training import final_spec
from coordinator.studies.import_file import import_study, lines_of
from coordinator.studies.repetition import create_replay
from services.contracts import Budget, Clone, Enqueue, Enqueued, ReplayStudy, StudyName, StudyView, TrainFinal

router = APIRouter(
    prefix="/api/v1/studies",
    tags=["studies"],
    dependencies=[Depends(require_by_method)],
    responses=problems(400, 401, 403, 404, 409, 413, 422, 429, 503),
)

JSON_LINES = "application/jsonl"

IMPORT_PATH = "/api/v1/studies/import"

Name = Annotated[StudyName, Path()]


@router.post("/{name}/enqueue", max_body_size=body_limits.SPEC_BYTES)
def enqueue(name: Name, wanted: Enqueue, session: Transaction, wake_leader: WakeLeader) -> Enqueued:
    """Enqueue configurations; they run after the existing trials and count towards the budget."""
    numbers = life.enqueue(session, name, wanted.configurations)
    wake_leader()
    return Enqueued(numbers=numbers)


@router.post("/{name}/budget")
def budget(name: Name, wanted: Budget, session: Transaction, wake_leader: WakeLeader) -> StudyView:
    """Set the total number of trials; a complete study continues if the number is larger than before."""
    study = life.set_budget(session, name, wanted.trials)
    wake_leader()
    return views.study_view(session, study)


@router.post("/{name}/clone", status_code=201, max_body_size=body_limits.SPEC_BYTES)
def clone(
    name: Name, wanted: Clone, session: Transaction, settings: Settings, wake_leader: WakeLeader
) -> StudyView:
    """Create a study with the same spec and clips and the given changes; no trials are copied."""
    spec = life.cloned_spec(session, name, wanted)
    study = life.create(session, spec, settings.cache_root, settings.models_root)
    wake_leader()
    warnings = data_warnings(session, study, settings.cache_root)
    return views.study_view(session, study).model_copy(update={"warnings": warnings})


@router.post("/{name}/final", status_code=201)
def train_final(
    name: Name, wanted: TrainFinal, session: Transaction, settings: Settings, wake_leader: WakeLeader
) -> StudyView:
    """Create a study that trains the best or a given configuration on all clips and stores it as a model."""
    spec = final_spec(session, name, wanted)
    study = life.create(session, spec, settings.cache_root, settings.models_root)
    wake_leader()
    return views.study_view(session, study)


@router.post("/{name}/replay", status_code=201)
def replay(
    name: Name, wanted: ReplayStudy, session: Transaction, settings: Settings, wake_leader: WakeLeader
) -> StudyView:
    """Create a study that runs this one again, with its plan and what was enqueued, to compare the digests."""
    study = create_replay(session, name, wanted, settings.cache_root, settings.models_root)
    wake_leader()
    return views.study_view(session, study)


@router.get("/{name}/export", response_class=StreamingResponse, responses={200: {"content": {JSON_LINES: {}}}})
async def export(name: Name, runtime: CurrentRuntime, caller: CallerOfRequest) -> Response:
    """Export the study as JSON lines: the study, then its trials with all results. One export per token."""
    await in_transaction(runtime, lambda session: get_study(session, name))
    return ExportResponse(
        lambda: _lines(runtime.sessions, name),
        await runtime.exports.begin(caller.name),
        media_type=JSON_LINES,
        headers={"Content-Disposition": f'attachment; filename="{name}.jsonl"'},
    )


@router.post(
    "/import",
    status_code=201,
    max_body_size=body_limits.IMPORT_BYTES,
    openapi_extra={"requestBody": {"required": True, "content": {JSON_LINES: {"schema": {"type": "string"}}}}},
)
async def import_(
    request: Request,
    runtime: CurrentRuntime,
    caller: CallerOfRequest,
    name: Annotated[StudyName | None, Query()] = None,
) -> StudyView:
    """Import an exported study, under its own name or another; a running study is imported as paused.

    One import per token.
    """
    async with runtime.imports.taken(caller.name):
        with TemporaryFile() as file:
            # Written to disk first, so that the transaction does not wait for the client.
            async for chunk in request.stream():
                await run_in_threadpool(file.write, chunk)
            file.seek(0)
            view = await in_transaction(runtime, lambda session: _imported(session, runtime, file, name))
    runtime.leader.wake()
    return view


@router.delete("/{name}", status_code=204)
def delete(
    name: Name,
    session: Transaction,
    wake_leader: WakeLeader,
    confirm: Annotated[
        str | None, Query(max_length=100, description="the study's name again, as confirmation")
    ] = None,
) -> None:
    """Delete a study that is not running, with all its trials and results; export it first to keep a copy."""
    allow(session, LONG_SECONDS)
    delete_study(session, name, confirm)
    wake_leader()


def _lines(sessions: sessionmaker[Session], name: str) -> Generator[bytes, None, None]:
    with sessions() as session:
        # One snapshot for all queries.
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        allow_pauses(session, PAUSE_SECONDS)
        yield from export_lines(session, name)


def _imported(session: Session, runtime: Runtime, file: IO[bytes], name: str | None) -> StudyView:
    allow(session, LONG_SECONDS)
    study = import_study(session, lines_of(file), runtime.settings.cache_root, name)
    return views.study_view(session, study)
