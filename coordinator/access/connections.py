"""Limits of single connections: the size of a request's head, and the time in which head and body arrive.

They hold before a token is known. uvicorn's parser has none, and its time grows with the square of a head's
size.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 2**10
"""Maximum bytes of a request's line and headers."""

HEAD_SECONDS = 30.0
"""Seconds in which a request's line and headers arrive, from the connection or from their first byte."""

BODY_SECONDS = 30.0
"""Maximum seconds between two parts of a request's body."""

UNREAD_MS = 120_000
"""Milliseconds after which the system closes a connection whose other end takes no data."""

OnRefused = Callable[[str], None]
"""Called with the reason why a connection was closed."""

_TOO_LARGE = b"the request's head is larger than 64 KiB; send fewer or shorter headers"


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which closes connections beyond the limits."""

    on_refused: OnRefused = staticmethod(lambda reason: None)

    _head_bytes = 0
    _in_head = True
    _complete = False
    _ended_here = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        # An answer that nobody takes keeps no connection.
        with suppress(OSError, AttributeError):
            transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS
            )
        self._await(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._ended_here = False
        super().data_received(data)
        if self.transport.is_closing() or self._complete:
            self._cancel()
        elif not self._in_head:
            self._await(BODY_SECONDS)
        else:
            if not self._head_bytes:
                self._await(HEAD_SECONDS)
            # Of data in which another request ended, the beginning of this head is not known.
            self._head_bytes += 1 if self._ended_here else len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse("head_too_large", b"431 Request Header Fields Too Large", _TOO_LARGE)

    def on_message_begin(self) -> None:
        """See httptools."""
        self._head_bytes, self._in_head, self._complete = 0, True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._in_head = False
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) <= MAX_HEAD_BYTES:
            super().on_headers_complete()
        else:
            self._refuse("head_too_large", b"431 Request Header Fields Too Large", _TOO_LARGE)

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._complete = self._ended_here = True
        if not self.transport.is_closing():
            super().on_message_complete()

    def _await(self, seconds: float) -> None:
        self._cancel()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self.flow.read_paused:
            # The application has not taken what has arrived.
            self._await(BODY_SECONDS)
        elif self._head_bytes or not self._in_head:
            part = b"head" if self._in_head else b"body"
            message = b"the request's " + part + b" did not arrive in time; send it faster"
            self._refuse(f"{part.decode()}_too_slow", b"408 Request Timeout", message)
        else:
            self.transport.close()

    def _refuse(self, reason: str, status: bytes, message: bytes) -> None:
        self.on_refused(reason)
        self._cancel()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            head = b"HTTP/1.1 %b\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n" % status
            self.transport.write(head + b"content-length: %d\r\n\r\n%b" % (len(message), message))
        self.transport.close()


def limited_protocol(on_refused: OnRefused) -> type[LimitedProtocol]:
    """The protocol for a server that counts what is refused."""
    attributes: dict[str, Any] = {"on_refused": staticmethod(on_refused)}
    return type("LimitedProtocol", (LimitedProtocol,), attributes)
