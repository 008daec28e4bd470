"""Who may do what: callers and the scopes of their tokens.

Default deny, twice: `TokenGate` refuses whatever carries no known token before its body is read, and every
router asks that the caller found by the gate has its scope. A browser may show a session in place of a token,
to pages alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.access.callers import Caller, Callers
from coordinator.access.cookie import session_of
from coordinator.access.paths import is_open, is_page, sign_in_path, wants_html
from coordinator.access.problems import problem_response
from services.contracts import TokenScope
from services.errors import FoldwiseError, ScopeMissing, TokenRefused

OPEN_PATHS = {"/livez", "/readyz"}
"""The probes. Everything else needs a token, but for the form to sign in and the files that it loads."""

# Says in the OpenAPI description that a token is needed; it is the gate that reads it.
_bearer = HTTPBearer(auto_error=False, description="a token of `foldwise token create`")


class TokenGate:
    """ASGI middleware: lets a request pass that carries a known token, whatever its scope."""

    def __init__(self, app: ASGIApp, callers: Callable[[], Callers]) -> None:
        """`callers` is called with each request, because the application makes them when it starts."""
        self._app = app
        self._callers = callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        path = scope.get("path", "")
        if scope["type"] == "http" and path not in OPEN_PATHS and not is_open(path):
            headers = Headers(scope=scope)
            try:
                await _identify(self._callers(), scope, path, headers)
            except FoldwiseError as error:
                if isinstance(error, TokenRefused) and scope["method"] == "GET" and wants_html(path, headers):
                    answer: ASGIApp = RedirectResponse(sign_in_path(path), HTTPStatus.SEE_OTHER)
                else:
                    answer = problem_response(error)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _identify(callers: Callers, scope: Scope, path: str, headers: Headers) -> None:
    address = scope["client"][0] if scope.get("client") else "an unknown address"
    authorization = headers.get("authorization", "")
    session = session_of(headers) if is_page(path) and not authorization else None
    state = scope.setdefault("state", {})
    if session is None:
        state["caller"] = await callers.identify(authorization, address)
    else:
        state["caller"] = await callers.identify_session(session, address)
        state["session"] = session


# Dependencies that wait for nothing are coroutines: FastAPI runs plain functions in a thread, each for itself.


async def _caller(request: Request) -> Caller:
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None:
        raise TokenRefused("no token was given; send the header `Authorization: Bearer TOKEN`")
    return caller


CallerOfRequest = Annotated[Caller, Depends(_caller)]
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def require(needed: TokenScope) -> Callable[..., Awaitable[None]]:
    """A dependency that lets a request pass only with a token of this scope.

    Raises:
        ScopeMissing: the token is of another scope.
        TokenRefused: there is none.
    """

    async def check(caller: CallerOfRequest, _credentials: _Credentials) -> None:
        _check(caller, needed)

    return check


async def require_by_method(request: Request, caller: CallerOfRequest, _credentials: _Credentials) -> None:
    """A dependency for what people ask: to read needs `read`, to delete `admin`, all else `write`.

    Raises:
        ScopeMissing: the token is of another scope.
        TokenRefused: there is none.
    """
    needed = {"GET": TokenScope.READ, "HEAD": TokenScope.READ, "DELETE": TokenScope.ADMIN}
    _check(caller, needed.get(request.method, TokenScope.WRITE))


def _check(caller: Caller, needed: TokenScope) -> None:
    if needed not in caller.scope.includes:
        raise ScopeMissing(
            f"this needs a token of the scope {needed.value}, the one that was sent has {caller.scope.value}; "
            f"an admin can make one with `foldwise token create NAME --scope {needed.value}`"
        )
