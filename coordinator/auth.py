"""Who may do what: bearer tokens, compared in constant time.

Default deny, twice: `TokenGate` refuses whatever carries no known token before its body is read, and every
router asks for its scope.
"""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest
from typing import Literal

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.problems import problem_response
from coordinator.settings import CoordinatorSettings
from services.errors import TokenRefused

Right = Literal["worker", "admin"]

OPEN_PATHS = {"/livez", "/readyz"}
"""The probes; everything else needs a token."""


class TokenGate:
    """ASGI middleware: lets a request pass that carries a known token, whatever its scope."""

    def __init__(self, app: ASGIApp, settings: CoordinatorSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                _check(Headers(scope=scope), self._settings, "worker")
            except TokenRefused as error:
                await problem_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def require(right: Right) -> Callable[[Request], None]:
    """A dependency that lets a request pass only with a token of this scope; admin includes worker.

    Raises:
        TokenRefused: no token, or not the right one.
    """

    def check(request: Request) -> None:
        _check(request.headers, request.app.state.settings, right)

    return check


def _check(headers: Headers, settings: CoordinatorSettings, right: Right) -> None:
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token:
        raise TokenRefused("no token was given; send the header `Authorization: Bearer TOKEN`")
    allowed = {"admin": [settings.admin_token], "worker": [settings.worker_token, settings.admin_token]}
    if not any(compare_digest(token.encode(), known.encode()) for known in allowed[right]):
        raise TokenRefused(f"the token was refused: it is unknown or lacks the scope {right}")
