"""Large bodies: a few at once, so that many callers cannot fill the memory of a coordinator together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Container
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGE_BYTES = 2**20
"""Bytes from which on a body is large; one whose size is not announced is large too."""

MAX_LARGE = 8
"""Large bodies that are received or handled at once; further ones wait."""

MAX_OF_CALLER = 6
"""Large bodies of one caller at once, so that others always have a turn."""

RECEIVE_SECONDS = 120.0
"""Seconds in which a large body arrives once it has its turn."""


class LargeBodies:
    """ASGI middleware, inside of the one that finds the caller."""

    def __init__(self, app: ASGIApp, streamed: Container[str]) -> None:
        """`streamed` has the paths of requests whose body is never in memory as a whole."""
        self._app = app
        self._streamed = streamed
        self._slots = asyncio.Semaphore(MAX_LARGE)
        self._waiting: Counter[str] = Counter()
        self._of_caller: dict[str, asyncio.Semaphore] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http" or not _is_large(Headers(scope=scope)) or scope["path"] in self._streamed:
            await self._app(scope, receive, send)
            return
        caller = getattr(scope.get("state", {}).get("caller"), "name", "")
        self._waiting[caller] += 1
        try:
            async with self._of_caller.setdefault(caller, asyncio.Semaphore(MAX_OF_CALLER)), self._slots:
                await self._app(scope, _in_time(receive), send)
        finally:
            self._waiting[caller] -= 1
            if not self._waiting[caller]:
                del self._waiting[caller], self._of_caller[caller]


def _is_large(headers: Headers) -> bool:
    length = headers.get("content-length")
    if length is None:
        return "transfer-encoding" in headers
    return not length.isdecimal() or int(length) > LARGE_BYTES


def _in_time(receive: Receive) -> Receive:
    deadline = asyncio.get_running_loop().time() + RECEIVE_SECONDS
    complete = False

    async def receive_in_time() -> Message:
        nonlocal complete
        if complete:
            # From here on the server tells only of the end of the connection.
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(
                HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {RECEIVE_SECONDS:.0f} s"
            ) from error
        complete = message["type"] == "http.request" and not message.get("more_body", False)
        return message

    return receive_in_time
