"""The FastAPI application: the gate, routes, and the leader's life."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from sqlalchemy.orm import sessionmaker
from starlette.concurrency import run_in_threadpool

from coordinator.auth import TokenGate
from coordinator.leader import Leader
from coordinator.problems import add_handlers
from coordinator.routes import events, leases, studies, study_life, system
from coordinator.settings import CoordinatorSettings
from coordinator.store.database import connect

MAX_BODY_BYTES = 16 * 2**20
"""Far more than the predictions of a fold of a thousand clips."""


def create_app(settings: CoordinatorSettings, *, ending: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application for one database, whose schema is up to date; starting it starts the leader.

    Args:
        ending: whether the server was told to end; a claim that waits is then answered at once.

    Raises:
        InvalidInput: at start, the database's URL is wrong.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = connect(settings.database_url)
        app.state.sessions = sessionmaker(engine, expire_on_commit=False)
        app.state.leader = Leader(engine, settings)
        app.state.leader.start()
        yield
        # A round under way is finished first; requests go on being answered meanwhile.
        await run_in_threadpool(app.state.leader.stop)
        engine.dispose()

    app = FastAPI(
        title="foldwise",
        version=version("foldwise"),
        lifespan=lifespan,
        max_body_size=MAX_BODY_BYTES,
        # Its pages load scripts from other hosts; the description itself is behind the token like all else.
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.ending = ending
    app.include_router(leases.router)
    app.include_router(studies.router)
    app.include_router(study_life.router)
    app.include_router(events.router)
    app.include_router(system.router)
    app.include_router(system.for_people)
    app.add_middleware(TokenGate, settings=settings)
    add_handlers(app)
    return app
