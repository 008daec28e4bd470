"""One transaction per request: committed when the handler returns, rolled back when it raises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, TypeVar

from fastapi import Depends
from sqlalchemy import event
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from coordinator.runtime import CurrentRuntime, Runtime
from coordinator.settings import CoordinatorSettings

T = TypeVar("T")


async def _slot(runtime: CurrentRuntime) -> AsyncIterator[None]:
    # A request takes a thread several times while it holds a connection. If other requests occupied all threads
    # while they wait for a connection, none could continue; so requests wait here, before they take either.
    async with runtime.transaction_slots:
        yield


def _transaction(
    runtime: CurrentRuntime, slot: Annotated[None, Depends(_slot, scope="function")]
) -> Iterator[Session]:
    with runtime.sessions.begin() as session:
        yield session


# `scope="function"` commits before the reply is sent, so an acknowledged write is durable.
Transaction = Annotated[Session, Depends(_transaction, scope="function")]


async def in_transaction(runtime: Runtime, work: Callable[[Session], T]) -> T:
    """Run `work` in one transaction and one thread, for frequent requests.

    A handler with a `Transaction` changes threads between begin, work and commit, which costs time.
    """

    def begin_to_commit() -> T:
        with runtime.sessions.begin() as session:
            return work(session)

    async with runtime.transaction_slots:
        return await run_in_threadpool(begin_to_commit)


async def _settings(runtime: CurrentRuntime) -> CoordinatorSettings:
    return runtime.settings


async def _wake_leader(runtime: CurrentRuntime, session: Transaction) -> Callable[[], None]:
    def wake() -> None:
        # Before the commit, the leader would not see the change.
        event.listen(session, "after_commit", lambda _: runtime.leader.wake(), once=True)

    return wake


Settings = Annotated[CoordinatorSettings, Depends(_settings)]
WakeLeader = Annotated[Callable[[], None], Depends(_wake_leader)]
