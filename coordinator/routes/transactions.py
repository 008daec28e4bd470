"""One request, one transaction: committed when the handler returns, rolled back when it raises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from coordinator.leader import Leader
from coordinator.settings import CoordinatorSettings


def _transaction(request: Request) -> Iterator[Session]:
    with request.app.state.sessions.begin() as session:
        yield session


def _settings(request: Request) -> CoordinatorSettings:
    settings: CoordinatorSettings = request.app.state.settings
    return settings


def _leader(request: Request) -> Leader:
    leader: Leader = request.app.state.leader
    return leader


# `scope="function"` commits before the reply is sent: an acknowledged write is a durable one.
Transaction = Annotated[Session, Depends(_transaction, scope="function")]
Settings = Annotated[CoordinatorSettings, Depends(_settings)]
LeaderThread = Annotated[Leader, Depends(_leader)]
