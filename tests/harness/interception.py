"""Middleware for a real application: it runs code before chosen requests, or loses their answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class Interception:
    """What happens to the requests whose "METHOD /path" matches `pattern`."""

    pattern: str | None = None
    """None matches no request."""

    before: Callable[[int], object] = lambda number: None
    """Called with the number of the matching request, counted from 0, before the application sees it."""

    after: Callable[[int], object] = lambda number: None
    """Called when the application has answered, before the caller gets the answer."""

    unreachable: Callable[[int], bool] = lambda number: False
    """Whether the application does not see the request; its caller gets a 503."""

    answer_lost: Callable[[int], bool] = lambda number: False
    """Whether the application sees the request but its caller gets a 503."""

    count: int = 0
    """Matching requests so far."""

    def matches(self, scope: Scope) -> bool:
        """Whether a request is one of them."""
        if self.pattern is None or scope["type"] != "http":
            return False
        return re.search(self.pattern, f"{scope['method']} {scope['path']}") is not None


def intercept(app: FastAPI, interception: Interception) -> Interception:
    """Let `interception` act on an application that does not run yet."""
    app.add_middleware(_Middleware, interception=interception)
    return interception


class _Middleware:
    def __init__(self, app: ASGIApp, interception: Interception) -> None:
        self._app, self._interception = app, interception

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        what = self._interception
        if not what.matches(scope):
            await self._app(scope, receive, send)
            return
        number, what.count = what.count, what.count + 1
        await run_in_threadpool(what.before, number)
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        if what.unreachable(number):
            answer = _UNAVAILABLE
        else:
            await self._app(scope, receive, keep)
            if what.answer_lost(number):
                answer = _UNAVAILABLE
            await run_in_threadpool(what.after, number)
        for message in answer:
            await send(message)


_UNAVAILABLE: list[Message] = [
    {"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]},
    {"type": "http.response.body", "body": b""},
]
