"""What happened, as server-sent events: from the database, so that each replica tells the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool

from coordinator.access.gate import require_by_method
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

LOOK_AGAIN = 0.5
"""Seconds between two looks for events."""


def _beginning(
    runtime: CurrentRuntime,
    after: Annotated[
        str | None, Query(max_length=50, description="id of an event; 0-0 for all there are")
    ] = None,
    last_event_id: Annotated[str | None, Header(max_length=50)] = None,
) -> Cursor:
    told = last_event_id or after
    if told is not None:
        return parse_cursor(told)
    with runtime.sessions() as session:
        return newest_cursor(session)


def _study_id(runtime: CurrentRuntime, name: Annotated[StudyName, Path()]) -> int:
    # In a session of its own: the request's lives as long as the stream.
    with runtime.sessions() as session:
        return get_study(session, name).id


Beginning = Annotated[Cursor, Depends(_beginning)]


@router.get("/events", response_class=EventSourceResponse)
async def events(runtime: CurrentRuntime, beginning: Beginning) -> AsyncIterator[ServerSentEvent]:
    """What happens from now on, or what followed the event that Last-Event-ID or `after` names."""
    async for event in _follow(runtime, beginning, None):
        yield _sent(event)


@router.get("/studies/{name}/events", response_class=EventSourceResponse)
async def study_events(
    runtime: CurrentRuntime, study_id: Annotated[int, Depends(_study_id)], beginning: Beginning
) -> AsyncIterator[ServerSentEvent]:
    """The same of one study; ends when it is deleted."""
    async for event in _follow(runtime, beginning, study_id):
        yield _sent(event)
        if event.kind == EventKind.STUDY_DELETED:
            return


async def _follow(runtime: Runtime, cursor: Cursor, study_id: int | None) -> AsyncIterator[Event]:
    def read(after: Cursor) -> list[Event]:
        with runtime.sessions() as session:
            return events_after(session, after, study_id)

    # The framework ends it when the client hangs up, and fills silence with a comment every 15 seconds.
    while not runtime.ending():
        try:
            found = await run_in_threadpool(read, cursor)
        except OperationalError:
            # The client comes again, with the id of the last event that it got.
            return
        for event in found:
            yield event
        if found:
            cursor = parse_cursor(found[-1].id)
        else:
            await asyncio.sleep(LOOK_AGAIN)


def _sent(event: Event) -> ServerSentEvent:
    return ServerSentEvent(raw_data=event.model_dump_json(), event=event.kind.value, id=event.id)
