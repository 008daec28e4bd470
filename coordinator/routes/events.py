"""Events as a stream (server-sent events), read from the database, so that all replicas send the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool

from coordinator.access.authorization import require_by_method
from coordinator.access.problems import problems
from coordinator.events import Cursor, events_after, newest_cursor, parse_cursor
from coordinator.runtime import CurrentRuntime, Runtime
from coordinator.store.studies import get_study
from services.contracts import Event, EventKind, StudyName

router = APIRouter(
    prefix="/api/v1",
    tags=["events"],
    dependencies=[Depends(require_by_method)],
    responses=problems(400, 401, 403, 404, 409, 413, 422, 429, 503),
)

POLL_SECONDS = 0.5
"""Seconds between two queries for new events."""


def _beginning(
    runtime: CurrentRuntime,
    after: Annotated[
        str | None, Query(max_length=50, description="id of the last received event; 0-0 for all stored events")
    ] = None,
    last_event_id: Annotated[str | None, Header(max_length=50)] = None,
) -> Cursor:
    start = last_event_id or after
    if start is not None:
        return parse_cursor(start)
    with runtime.sessions() as session:
        return newest_cursor(session)


def _study_id(runtime: CurrentRuntime, name: Annotated[StudyName, Path()]) -> int:
    # A separate session, because the request's session would stay open as long as the stream.
    with runtime.sessions() as session:
        return get_study(session, name).id


Beginning = Annotated[Cursor, Depends(_beginning)]


@router.get("/events", response_class=EventSourceResponse)
async def events(runtime: CurrentRuntime, beginning: Beginning) -> AsyncIterator[ServerSentEvent]:
    """Stream new events, or all events after the one that Last-Event-ID or `after` names."""
    async for event in _follow(runtime, beginning, None):
        yield _sent(event)


@router.get("/studies/{name}/events", response_class=EventSourceResponse)
async def study_events(
    runtime: CurrentRuntime, study_id: Annotated[int, Depends(_study_id)], beginning: Beginning
) -> AsyncIterator[ServerSentEvent]:
    """Stream the events of one study; the stream ends when the study is deleted."""
    async for event in _follow(runtime, beginning, study_id):
        yield _sent(event)
        if event.kind == EventKind.STUDY_DELETED:
            return


async def _follow(runtime: Runtime, cursor: Cursor, study_id: int | None) -> AsyncIterator[Event]:
    def read(after: Cursor) -> list[Event]:
        with runtime.sessions() as session:
            return events_after(session, after, study_id)

    # FastAPI stops this generator when the client disconnects, and sends a comment after 15 seconds of silence.
    while not runtime.ending():
        try:
            found = await run_in_threadpool(read, cursor)
        except OperationalError:
            # The client reconnects with the id of the last event that it received.
            return
        for event in found:
            yield event
        if found:
            cursor = parse_cursor(found[-1].id)
        else:
            await asyncio.sleep(POLL_SECONDS)


def _sent(event: Event) -> ServerSentEvent:
    return ServerSentEvent(raw_data=event.model_dump_json(), event=event.kind.value, id=event.id)
