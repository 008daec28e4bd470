"""Errors as problem details (RFC 9457), and the error statuses that routes document.

A browser that asks for a page gets the problem as HTML, from the function given to `add_handlers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DBAPIError, IntegrityError, NoResultFound, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from coordinator.access.causes import cause_in_words, log_cause
from coordinator.access.paths import wants_html
from coordinator.store.database import database_is_gone
from services.contracts import Problem
from services.errors import (
    Conflict,
    FoldwiseError,
    InvalidInput,
    NotFound,
    TokenRefused,
    TooManyRequests,
    Unavailable,
)

ProblemPage = Callable[[Request, Problem], Response]
"""Renders a problem as an HTML page with the problem's status."""

_MEDIA_TYPE = "application/problem+json"
_MEANINGS = {
    400: "the body cannot be read",
    401: "the token is missing, unknown or revoked, or the lease's term or secret is wrong",
    403: "the token has another scope",
    404: "a named object does not exist",
    409: "not possible in the current state",
    410: "the study has ended",
    413: "the body is larger than the route allows; the answer is plain text",
    422: "a value is invalid; `field` names it",
    429: "too many requests; retry after the seconds in `Retry-After`",
    503: "the database does not answer; retry later",
}

_Headers = Mapping[str, str] | None


def add_handlers(app: FastAPI, problem_page: ProblemPage) -> None:
    """Answer every error of a route with a problem: as HTML from `problem_page` to browsers, else as JSON."""

    def handle(kind: type[Exception], describe: Callable[[Any], tuple[Problem, _Headers]]) -> None:
        def answer(request: Request, error: Exception) -> Response:
            problem, headers = describe(error)
            if not wants_html(request.url.path, request.headers):
                return _as_json(problem, headers)
            page = problem_page(request, problem)
            page.headers.update(headers or {})
            return page

        app.add_exception_handler(kind, answer)

    handle(FoldwiseError, _problem_of)
    handle(RequestValidationError, _bad_request)
    handle(HTTPException, _http_error)
    handle(PoolTimeout, _database_trouble)
    handle(DBAPIError, _database_trouble)
    handle(IntegrityError, _concurrent_write)
    handle(NoResultFound, _concurrent_deletion)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of a route or router that answers with problems of these statuses."""
    content = {_MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {
        status: {"description": _MEANINGS[status]}
        | ({"content": content} if status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE else {})
        for status in statuses
    }


def problem_response(error: FoldwiseError) -> JSONResponse:
    """A JSON response for an error."""
    return _as_json(*_problem_of(error))


def _as_json(problem: Problem, headers: _Headers) -> JSONResponse:
    return JSONResponse(
        problem.model_dump(mode="json"), status_code=problem.status, headers=headers, media_type=_MEDIA_TYPE
    )


def _problem_of(error: FoldwiseError) -> tuple[Problem, dict[str, str]]:
    headers = {}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, TokenRefused):
        headers["WWW-Authenticate"] = "Bearer"
    problem = Problem(
        type=f"urn:foldwise:{error.code}",
        title=error.code.replace("-", " "),
        status=error.status,
        detail=error.message,
        field=error.field,
    )
    return problem, headers


def _bad_request(error: RequestValidationError) -> tuple[Problem, _Headers]:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    what = first["msg"].removeprefix("Value error, ")
    return _problem_of(InvalidInput(f"{where}: {what}" if where else what, field=where or None))


def _http_error(error: HTTPException) -> tuple[Problem, _Headers]:
    # The framework's own errors: an unknown path or method, a body that is not text.
    problem = Problem(
        type="about:blank",
        title=HTTPStatus(error.status_code).phrase,
        status=error.status_code,
        detail=error.detail,
    )
    return problem, error.headers


def _database_trouble(error: DBAPIError | PoolTimeout) -> tuple[Problem, _Headers]:
    if not (isinstance(error, OperationalError) or database_is_gone(error)):
        # A statement of ours is wrong: the server answers 500 and logs it.
        raise error
    log_cause(error)
    return _problem_of(Unavailable(f"{cause_in_words(error)}; retry later"))


def _concurrent_write(_error: IntegrityError) -> tuple[Problem, _Headers]:
    return _problem_of(
        Conflict("another request created the same object at the same time; check its state, then retry")
    )


def _concurrent_deletion(_error: NoResultFound) -> tuple[Problem, _Headers]:
    return _problem_of(NotFound("another request deleted this object at the same time"))
