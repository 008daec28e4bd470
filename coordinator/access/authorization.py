"""Authorization: rejects requests without a known token, and checks the scope that a route requires.

Default deny, twice: `TokenMiddleware` rejects a request without a known token before its body is read, and
every router checks the scope of the caller that the middleware found. Only pages accept a browser session
instead of a token.
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

from coordinator.access.authentication import Caller, Callers
from coordinator.access.cookie import session_secret
from coordinator.access.paths import is_open, is_page, sign_in_path, wants_html
from coordinator.access.problems import problem_response
from services.contracts import TokenScope
from services.errors import FoldwiseError, ScopeMissing, TokenRefused

OPEN_PATHS = {"/livez", "/readyz"}
"""Paths of the probes, which need no token; neither do those of `is_open`. All others do."""

# Only documents in OpenAPI that a token is needed; `TokenMiddleware` reads it.
_bearer = HTTPBearer(auto_error=False, description="a token from `foldwise token create`")


class TokenMiddleware:
    """ASGI middleware: accepts a request with any known token and stores its caller in the request state."""

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
    session = session_secret(headers) if is_page(path) and not authorization else None
    state = scope.setdefault("state", {})
    if session is None:
        state["caller"] = await callers.identify(authorization, address)
    else:
        state["caller"] = await callers.identify_session(session, address)
        state["session"] = session


# These dependencies are coroutines although they await nothing: FastAPI runs every plain function in a thread.


async def _caller(request: Request) -> Caller:
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None:
        raise TokenRefused("the request has no token; send the header `Authorization: Bearer TOKEN`")
    return caller


CallerOfRequest = Annotated[Caller, Depends(_caller)]
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def require(needed: TokenScope) -> Callable[..., Awaitable[None]]:
    """Build a dependency that requires a token with this scope.

    Raises:
        ScopeMissing: the token has another scope.
        TokenRefused: the request has no token.
    """

    async def check(caller: CallerOfRequest, _credentials: _Credentials) -> None:
        _check(caller, needed)

    return check


async def require_by_method(request: Request, caller: CallerOfRequest, _credentials: _Credentials) -> None:
    """Dependency for users' requests: GET and HEAD require `read`, DELETE requires `admin`, others `write`.

    Raises:
        ScopeMissing: the token has another scope.
        TokenRefused: the request has no token.
    """
    needed = {"GET": TokenScope.READ, "HEAD": TokenScope.READ, "DELETE": TokenScope.ADMIN}
    _check(caller, needed.get(request.method, TokenScope.WRITE))


def _check(caller: Caller, needed: TokenScope) -> None:
    if needed not in caller.scope.includes:
        raise ScopeMissing(
            f"this request needs the scope {needed.value}, but the token has the scope {caller.scope.value}; "
            f"an admin can create another with `foldwise token create NAME --scope {needed.value}`"
        )
