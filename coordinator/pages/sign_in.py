"""Sign-in with a token, and sign-out."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from coordinator.access import browser_sessions
from coordinator.access.authorization import require
from coordinator.access.cookie import clear_session, set_session
from coordinator.access.paths import SIGN_IN, safe_next
from coordinator.pages.forms import MAX_FORM_BYTES, FormFields, SessionFields
from coordinator.pages.rendering import render_page
from coordinator.runtime import CurrentRuntime, Runtime
from services.contracts import TokenScope
from services.errors import FoldwiseError, ScopeMissing

router = APIRouter(include_in_schema=False)
Next = Annotated[str, Query(max_length=2000)]


@router.get(SIGN_IN)
def form(request: Request, next: Next = "/") -> Response:
    """The sign-in form."""
    return render_page(request, "sign_in.html", next=safe_next(next), error=None)


@router.post(SIGN_IN, max_body_size=MAX_FORM_BYTES)
async def sign_in(request: Request, fields: FormFields, runtime: CurrentRuntime) -> Response:
    """Start a session for the token, and redirect to the wanted page."""
    token, wanted = fields.get("token", "").strip(), safe_next(fields.get("next", "/"))
    try:
        secret = await _session_for(request, runtime, token)
    except FoldwiseError as error:
        return render_page(request, "sign_in.html", status=error.status, next=wanted, error=error.message)
    answer = RedirectResponse(wanted, HTTPStatus.SEE_OTHER)
    set_session(request, answer, secret)
    return answer


@router.post("/sign-out", dependencies=[Depends(require(TokenScope.READ))], max_body_size=MAX_FORM_BYTES)
async def sign_out(request: Request, _fields: SessionFields, runtime: CurrentRuntime) -> Response:
    """End the session, so that copies of its cookie are invalid too."""
    secret: str | None = getattr(request.state, "session", None)
    if secret is not None:
        await run_in_threadpool(_end, runtime, secret)
        runtime.callers.forget(secret)
    answer = RedirectResponse(SIGN_IN, HTTPStatus.SEE_OTHER)
    clear_session(answer)
    return answer


@router.get("/session", status_code=HTTPStatus.NO_CONTENT, dependencies=[Depends(require(TokenScope.READ))])
async def session() -> Response:
    """Check the session or token, for services that share this sign-in, such as Optuna's dashboard."""
    return Response(status_code=HTTPStatus.NO_CONTENT)


async def _session_for(request: Request, runtime: Runtime, token: str) -> str:
    address = request.client.host if request.client else "an unknown address"
    caller = await runtime.callers.identify(f"Bearer {token}", address)
    if TokenScope.READ not in caller.scope.includes:
        raise ScopeMissing(
            f"a token with the scope {caller.scope.value} opens no page; sign in with one of the scope read, "
            "write or admin"
        )
    return await run_in_threadpool(_start, runtime, token)


def _start(runtime: Runtime, token: str) -> str:
    with runtime.sessions.begin() as database:
        return browser_sessions.start(database, token)


def _end(runtime: Runtime, secret: str) -> None:
    with runtime.sessions.begin() as database:
        browser_sessions.end(database, secret)
