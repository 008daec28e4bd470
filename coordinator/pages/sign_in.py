"""Signing in with a token, and out again."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from coordinator.access import sessions
from coordinator.access.cookie import clear_session, set_session
from coordinator.access.gate import require
from coordinator.access.paths import SIGN_IN, safe_next
from coordinator.pages.answers import page
from coordinator.pages.forms import FORM_BYTES_ALLOWED, OwnFields, SentFields
from coordinator.runtime import CurrentRuntime, Runtime
from services.contracts import TokenScope
from services.errors import FoldwiseError, ScopeMissing

router = APIRouter(include_in_schema=False)
Next = Annotated[str, Query(max_length=2000)]


@router.get(SIGN_IN)
def form(request: Request, next: Next = "/") -> Response:
    """The form."""
    return page(request, "sign_in.html", next=safe_next(next), refused=None)


@router.post(SIGN_IN, max_body_size=FORM_BYTES_ALLOWED)
async def sign_in(request: Request, fields: SentFields, runtime: CurrentRuntime) -> Response:
    """Begin a session that stands for the token, and go on to the page that was wanted."""
    token, wanted = fields.get("token", "").strip(), safe_next(fields.get("next", "/"))
    try:
        secret = await _session_for(request, runtime, token)
    except FoldwiseError as error:
        return page(request, "sign_in.html", status=error.status, next=wanted, refused=error.message)
    answer = RedirectResponse(wanted, HTTPStatus.SEE_OTHER)
    set_session(request, answer, secret)
    return answer


@router.post("/sign-out", dependencies=[Depends(require(TokenScope.READ))], max_body_size=FORM_BYTES_ALLOWED)
async def sign_out(request: Request, _fields: OwnFields, runtime: CurrentRuntime) -> Response:
    """End the session, here and wherever its cookie was copied to."""
    secret: str | None = getattr(request.state, "session", None)
    if secret is not None:
        await run_in_threadpool(_end, runtime, secret)
        runtime.callers.forget(secret)
    answer = RedirectResponse(SIGN_IN, HTTPStatus.SEE_OTHER)
    clear_session(answer)
    return answer


@router.get("/session", status_code=HTTPStatus.NO_CONTENT, dependencies=[Depends(require(TokenScope.READ))])
async def session() -> Response:
    """Whether the session counts: for what stands beside the coordinator behind the same sign-in."""
    return Response(status_code=HTTPStatus.NO_CONTENT)


async def _session_for(request: Request, runtime: Runtime, token: str) -> str:
    address = request.client.host if request.client else "an unknown address"
    caller = await runtime.callers.identify(f"Bearer {token}", address)
    if TokenScope.READ not in caller.scope.includes:
        raise ScopeMissing(
            f"a token of the scope {caller.scope.value} opens no page; sign in with one of the scope read, "
            "write or admin"
        )
    return await run_in_threadpool(_start, runtime, token)


def _start(runtime: Runtime, token: str) -> str:
    with runtime.sessions.begin() as database:
        return sessions.start(database, token)


def _end(runtime: Runtime, secret: str) -> None:
    with runtime.sessions.begin() as database:
        sessions.end(database, secret)
