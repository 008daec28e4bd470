"""Exports under way: one of a caller and a few of all, each only as long as its client reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from services.errors import TooManyRequests

log = structlog.get_logger()

MAX_EXPORTS = 2
"""Exports that run at once, because each holds a connection to the database; further ones wait."""

CHUNK_BYTES = 256 * 2**10
"""Minimum bytes that are read from the database before they are sent."""

CHUNK_SECONDS = 45.0
"""Seconds in which a client takes a chunk. The database ends a session that is idle for 60 seconds."""


class Exports:
    """The exports of one coordinator. For one event loop."""

    def __init__(self) -> None:
        self._callers: set[str] = set()
        self._slots = asyncio.Semaphore(MAX_EXPORTS)

    async def begin(self, caller: str) -> Callable[[], None]:
        """Wait for a slot; returns the function that gives it back.

        Raises:
            TooManyRequests: an export of this caller runs or waits.
        """
        if caller in self._callers:
            raise TooManyRequests(
                "another export of this token is under way; export one study after the other", retry_after=10.0
            )
        self._callers.add(caller)
        try:
            await self._slots.acquire()
        except BaseException:
            self._callers.discard(caller)
            raise

        def end() -> None:
            self._slots.release()
            self._callers.discard(caller)

        return end


class ExportResponse(StreamingResponse):
    """Sends lines that are read in a thread, and stops when the client reads no more."""

    def __init__(self, lines: Callable[[], Iterator[bytes]], end: Callable[[], None], **options: Any) -> None:
        """`end` is called when the export is over, for whatever reason."""
        self._chunks = _chunks(lines)
        self._end = end
        super().__init__(self._chunks, **options)

    async def stream_response(self, send: Send) -> None:
        """See starlette."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(CHUNK_SECONDS):
                await send(message)

        try:
            await super().stream_response(send_in_time)
        except TimeoutError:
            # The server closes the connection, because the answer is not complete.
            log.warning("export_not_read", seconds=CHUNK_SECONDS)
        finally:
            await self._chunks.aclose()
            self._end()


async def _chunks(lines: Callable[[], Iterator[bytes]]) -> AsyncGenerator[bytes, None]:
    """Lines joined to chunks, so that not each of them costs a change of threads."""
    source = lines()

    def chunk() -> bytes:
        parts: list[bytes] = []
        size = 0
        for line in source:
            parts.append(line)
            size += len(line)
            if size >= CHUNK_BYTES:
                break
        return b"".join(parts)

    try:
        while part := await run_in_threadpool(chunk):
            yield part
    finally:
        # Ends the transaction now, and not when the generator is collected.
        close = getattr(source, "close", None)
        if close is not None:
            await run_in_threadpool(close)
