"""An export that is sent as fast as its client reads, and ends when it reads no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import anyio
import structlog
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

log = structlog.get_logger()

CHUNK_BYTES = 256 * 2**10
"""Minimum bytes that are read from the database before they are sent."""

CHUNK_SECONDS = 45.0
"""Seconds in which a client takes a chunk."""

PAUSE_SECONDS = CHUNK_SECONDS + 15.0
"""Seconds that the transaction of an export may wait for its client."""


class ExportResponse(StreamingResponse):
    """Sends lines that are read in a thread, and stops when the client reads no more."""

    def __init__(
        self, lines: Callable[[], Generator[bytes, None, None]], end: Callable[[], None], **options: Any
    ) -> None:
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
            try:
                # Also if the client is gone, and this task is cancelled.
                with anyio.CancelScope(shield=True):
                    await self._chunks.aclose()
            finally:
                self._end()


async def _chunks(lines: Callable[[], Generator[bytes, None, None]]) -> AsyncGenerator[bytes, None]:
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
        # Ends the transaction now, in a thread, and not when the generator is collected.
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(source.close)
