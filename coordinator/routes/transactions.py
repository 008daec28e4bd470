"""One transaction per request: committed when the handler returns, rolled back when it raises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from sqlalchemy import event
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from coordinator.leader import Leader
from coordinator.settings import CoordinatorSettings

T = TypeVar("T")


async def _turn(request: Request) -> AsyncIterator[None]:
    # A request takes a thread several times while it holds a connection. If other requests occupied all threads
    # while they wait for a connection, none could continue; so requests wait here, before they take either.
    async with request.app.state.turns:
        yield


def _transaction(
    request: Request, turn: Annotated[None, Depends(_turn, scope="function")]
) -> Iterator[Session]:
    with request.app.state.sessions.begin() as session:
        yield session


# `scope="function"` commits before the reply is sent, so an acknowledged write is durable.
Transaction = Annotated[Session, Depends(_transaction, scope="function")]


async def in_transaction(request: Request, work: Callable[[Session], T]) -> T:
    """Run `work` in one transaction and one thread, for frequent requests.

    A handler with a `Transaction` changes threads between begin, work and commit, which costs time.
    """

    def begin_to_commit() -> T:
        with request.app.state.sessions.begin() as session:
            return work(session)

    async with request.app.state.turns:
        return await run_in_threadpool(begin_to_commit)


async def _settings(request: Request) -> CoordinatorSettings:
    settings: CoordinatorSettings = request.app.state.settings
    return settings


async def _wake_leader(request: Request, session: Transaction) -> Callable[[], None]:
    leader: Leader = request.app.state.leader

    def wake() -> None:
        # Before the commit, the leader would not see the change.
        event.listen(session, "after_commit", lambda _: leader.wake(), once=True)

    return wake


Settings = Annotated[CoordinatorSettings, Depends(_settings)]
WakeLeader = Annotated[Callable[[], None], Depends(_wake_leader)]
