"""The FastAPI application: routes, errors as problem+json, the leader's life."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import sessionmaker

from coordinator.leader import Leader
from coordinator.routes import leases, studies, system
from coordinator.settings import CoordinatorSettings
from coordinator.store.database import connect, migrate
from services.contracts import Problem
from services.errors import FoldwiseError, InvalidInput, Unavailable


def create_app(settings: CoordinatorSettings, *, ending: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application for one database; starting it brings the schema up to date and starts the leader.

    Args:
        ending: whether the server was told to end; a claim that waits is then answered at once.

    Raises:
        Unavailable: at start, the database does not answer.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = connect(settings.database_url)
        migrate(engine)
        app.state.sessions = sessionmaker(engine, expire_on_commit=False)
        app.state.leader = Leader(engine, settings)
        app.state.leader.start()
        yield
        app.state.leader.stop()
        engine.dispose()

    app = FastAPI(title="foldwise", version=version("foldwise"), lifespan=lifespan)
    app.state.settings = settings
    app.state.ending = ending
    app.include_router(leases.router)
    app.include_router(studies.router)
    app.include_router(system.router)
    app.include_router(system.for_people)
    app.add_exception_handler(FoldwiseError, _our_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(OperationalError, _database_gone)
    return app


def _our_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, FoldwiseError)  # noqa: S101 - registered for nothing else
    return _problem(error)


def _bad_request(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return _problem(InvalidInput(f"{where}: {first['msg'].removeprefix('Value error, ')}", field=where))


def _database_gone(_request: Request, _error: Exception) -> JSONResponse:
    return _problem(Unavailable("the database does not answer; try again"))


def _problem(error: FoldwiseError) -> JSONResponse:
    problem = Problem(
        type=f"urn:foldwise:{error.code}",
        title=error.code.replace("-", " "),
        status=error.status,
        detail=error.message,
        field=error.field,
    )
    return JSONResponse(
        problem.model_dump(mode="json"), status_code=error.status, media_type="application/problem+json"
    )
