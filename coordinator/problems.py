"""Errors as problem+json (RFC 9457)."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import IntegrityError, NoResultFound, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.contracts import Problem
from services.errors import Conflict, FoldwiseError, InvalidInput, NotFound, Unavailable


def add_handlers(app: FastAPI) -> None:
    """Let every error of a handler leave as a problem."""
    app.add_exception_handler(FoldwiseError, _our_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(OperationalError, _database_gone)
    app.add_exception_handler(PoolTimeout, _database_gone)
    app.add_exception_handler(IntegrityError, _crossed)
    app.add_exception_handler(NoResultFound, _gone)


def problem_response(error: FoldwiseError) -> JSONResponse:
    """An error as its JSON answer."""
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


def _our_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, FoldwiseError)  # noqa: S101 - registered for nothing else
    return problem_response(error)


def _bad_request(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    what = first["msg"].removeprefix("Value error, ")
    return problem_response(InvalidInput(f"{where}: {what}" if where else what, field=where or None))


def _database_gone(_request: Request, _error: Exception) -> JSONResponse:
    return problem_response(Unavailable("the database does not answer; try again"))


def _crossed(_request: Request, _error: Exception) -> JSONResponse:
    return problem_response(Conflict("somebody made the same thing at the same moment; look, then try again"))


def _gone(_request: Request, _error: Exception) -> JSONResponse:
    return problem_response(NotFound("it was deleted at the same moment"))
