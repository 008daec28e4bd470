"""Work that takes long: a few at once, and one of a caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from services.errors import TooManyRequests

RETRY_SECONDS = 10.0
"""Seconds after which a caller that already has one may try again."""


class Turns:
    """Who has a turn and who waits for one. For one event loop."""

    def __init__(self, maximum: int, what: str) -> None:
        """At most `maximum` have a turn at once; `what` names the work for error messages."""
        self._what = what
        self._callers: set[str] = set()
        self._free = asyncio.Semaphore(maximum)

    @property
    def callers(self) -> frozenset[str]:
        """The callers that have a turn or wait for one."""
        return frozenset(self._callers)

    async def begin(self, caller: str) -> Callable[[], None]:
        """Wait for a turn; returns the function that ends it.

        Raises:
            TooManyRequests: the caller has one already, or waits for it.
        """
        if caller in self._callers:
            raise TooManyRequests(
                f"another {self._what} of this token is under way; send one after the other",
                retry_after=RETRY_SECONDS,
            )
        self._callers.add(caller)
        try:
            await self._free.acquire()
        except BaseException:
            self._callers.discard(caller)
            raise

        def end() -> None:
            self._free.release()
            self._callers.discard(caller)

        return end

    @asynccontextmanager
    async def taken(self, caller: str) -> AsyncIterator[None]:
        """A turn that lasts as long as the context; raises as `begin`."""
        end = await self.begin(caller)
        try:
            yield
        finally:
            end()
