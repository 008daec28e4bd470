"""What the requests of one coordinator process share, from its start to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from prometheus_client import CollectorRegistry
from sqlalchemy.orm import Session, sessionmaker

from coordinator.access.authentication import Callers
from coordinator.access.turns import Turns
from coordinator.access.waiting_claims import WaitingClaims
from coordinator.leader import Leader
from coordinator.settings import CoordinatorSettings
from coordinator.store.database import CONNECTIONS_FOR_REQUESTS
from coordinator.study_workers import WorkerJobs

MAX_EXPORTS = 2
"""Exports that run at once, because each holds a connection to the database; further ones wait."""

MAX_IMPORTS = 1
"""Imports that run at once, because each holds one of the transactions for requests for minutes."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Made when the application starts, and stored once, as `app.state.runtime`."""

    settings: CoordinatorSettings
    sessions: sessionmaker[Session]
    probes: sessionmaker[Session]
    """For readiness; it has its own connections."""

    callers: Callers
    leader: Leader
    worker_jobs: WorkerJobs | None
    """None where this coordinator starts no workers in Kubernetes."""

    metrics: CollectorRegistry
    ending: Callable[[], bool]
    """Whether the server was told to end."""

    waiting_claims: WaitingClaims = field(default_factory=WaitingClaims)
    exports: Turns = field(default_factory=lambda: Turns(MAX_EXPORTS, "export"))
    imports: Turns = field(default_factory=lambda: Turns(MAX_IMPORTS, "import"))

    transaction_slots: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(CONNECTIONS_FOR_REQUESTS)
    )
    """Held by a request during its transaction."""


def runtime_of(app: FastAPI) -> Runtime:
    """The runtime of an application that has started."""
    runtime: Runtime = app.state.runtime
    return runtime


async def _runtime(request: Request) -> Runtime:
    return runtime_of(request.app)


# A dependency that is a coroutine: FastAPI runs plain functions in a thread, each for itself.
CurrentRuntime = Annotated[Runtime, Depends(_runtime)]
