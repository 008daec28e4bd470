"""One request, one transaction: committed when the handler returns, rolled back when it raises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import event
from sqlalchemy.orm import Session

from coordinator.leader import Leader
from coordinator.settings import CoordinatorSettings


async def _turn(request: Request) -> AsyncIterator[None]:
    # A request takes a thread several times while it holds a connection. If others waited in all threads for
    # a connection, none of them would ever get on; so they wait here, before they take either.
    async with request.app.state.turns:
        yield


def _transaction(
    request: Request, turn: Annotated[None, Depends(_turn, scope="function")]
) -> Iterator[Session]:
    with request.app.state.sessions.begin() as session:
        yield session


# `scope="function"` commits before the reply is sent: an acknowledged write is a durable one.
Transaction = Annotated[Session, Depends(_transaction, scope="function")]


def _settings(request: Request) -> CoordinatorSettings:
    settings: CoordinatorSettings = request.app.state.settings
    return settings


def _wake_leader(request: Request, session: Transaction) -> Callable[[], None]:
    leader: Leader = request.app.state.leader

    def wake() -> None:
        # Sooner, it would not see what was changed.
        event.listen(session, "after_commit", lambda _: leader.wake(), once=True)

    return wake


Settings = Annotated[CoordinatorSettings, Depends(_settings)]
WakeLeader = Annotated[Callable[[], None], Depends(_wake_leader)]
