"""A proxy from a TCP port to a Unix socket, as a connection pooler or a service mesh is one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def forwarded(address: tuple[str, int], path: str) -> Iterator[None]:
    """Forward connections to `address` to the Unix socket at `path` while the context lasts."""
    loop = asyncio.new_event_loop()
    started, ending = threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(lambda r, w: _forward(r, w, path), *address)
        started.set()
        async with server:
            await ending.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    if not started.wait(10):
        raise RuntimeError(f"{address} cannot be bound")
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(10)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
    try:
        to_reader, to_writer = await asyncio.open_unix_connection(path)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_copy(reader, to_writer), _copy(to_reader, writer))


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    target.close()
