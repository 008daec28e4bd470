"""Who may do what: bearer tokens, compared in constant time. Everything is refused unless a scope allows it."""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest
from typing import Literal

from fastapi import Request

from services.errors import TokenRefused

Scope = Literal["worker", "admin"]


def require(scope: Scope) -> Callable[[Request], None]:
    """A dependency that lets a request pass only with a token of this scope; admin includes worker.

    Raises:
        TokenRefused: no token, or not the right one.
    """

    def check(request: Request) -> None:
        settings = request.app.state.settings
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise TokenRefused("no token was given; send the header `Authorization: Bearer TOKEN`")
        allowed = {"admin": [settings.admin_token], "worker": [settings.worker_token, settings.admin_token]}
        if not any(compare_digest(token.encode(), known.encode()) for known in allowed[scope]):
            raise TokenRefused(f"the token was refused: it is unknown or lacks the scope {scope}")

    return check
