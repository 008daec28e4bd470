"""Errors as problem+json (RFC 9457), and which of them the routes say they answer with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import IntegrityError, NoResultFound, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from coordinator.access.paths import wants_html
from coordinator.pages.answers import problem_page
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

_MEDIA_TYPE = "application/problem+json"
_MEANINGS = {
    400: "the body cannot be read",
    401: "no token, or one that is unknown, revoked or not of this lease",
    403: "the token is of another scope",
    404: "a thing that was named does not exist",
    409: "not possible in the present state",
    410: "the study is over",
    413: "the body is larger than 16 MiB; answered as plain text",
    422: "a value that was given cannot be used; `field` names it",
    429: "too many requests; try again after the seconds in `Retry-After`",
    503: "the database does not answer now; try again",
}


def add_handlers(app: FastAPI) -> None:
    """Let every error of a handler leave as a problem."""
    app.add_exception_handler(FoldwiseError, _our_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _database_gone)
    app.add_exception_handler(PoolTimeout, _database_gone)
    app.add_exception_handler(IntegrityError, _crossed)
    app.add_exception_handler(NoResultFound, _gone)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route or router that answers with problems of these statuses, for OpenAPI."""
    content = {_MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {
        status: {"description": _MEANINGS[status]}
        | ({"content": content} if status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE else {})
        for status in statuses
    }


def problem_response(error: FoldwiseError) -> JSONResponse:
    """An error as its JSON answer."""
    return _as_json(_problem_of(error), _headers_of(error))


def _problem_of(error: FoldwiseError) -> Problem:
    return Problem(
        type=f"urn:foldwise:{error.code}",
        title=error.code.replace("-", " "),
        status=error.status,
        detail=error.message,
        field=error.field,
    )


def _headers_of(error: FoldwiseError) -> dict[str, str]:
    headers = {}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, TokenRefused):
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def _as_json(problem: Problem, headers: Mapping[str, str] | None) -> JSONResponse:
    return JSONResponse(
        problem.model_dump(mode="json"), status_code=problem.status, headers=headers, media_type=_MEDIA_TYPE
    )


def _answer(request: Request, problem: Problem, headers: Mapping[str, str] | None) -> Response:
    if not wants_html(request.url.path, request.headers):
        return _as_json(problem, headers)
    page = problem_page(request, problem)
    page.headers.update(headers or {})
    return page


def _our_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FoldwiseError)  # noqa: S101 - registered for nothing else
    return _answer(request, _problem_of(error), _headers_of(error))


def _bad_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    what = first["msg"].removeprefix("Value error, ")
    return _our_error(request, InvalidInput(f"{where}: {what}" if where else what, field=where or None))


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    # What the framework itself refuses: no such path, no such method, a body that is no text.
    problem = Problem(
        type="about:blank",
        title=HTTPStatus(error.status_code).phrase,
        status=error.status_code,
        detail=error.detail,
    )
    return _answer(request, problem, error.headers)


def _database_gone(request: Request, _error: Exception) -> Response:
    return _our_error(request, Unavailable("the database does not answer; try again"))


def _crossed(request: Request, _error: Exception) -> Response:
    return _our_error(
        request, Conflict("somebody made the same thing at the same moment; look, then try again")
    )


def _gone(request: Request, _error: Exception) -> Response:
    return _our_error(request, NotFound("it was deleted at the same moment"))
