"""Claims that wait for a fold: how often they look, so that many of one caller do not starve the others."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from services.errors import TooManyRequests

LOOK_SECONDS = 0.1
"""Seconds between two looks for folds of one kind."""

LOOKS_PER_SECOND = 20.0
"""Maximum looks per second of one caller, for all kinds of folds together."""

MAX_WAITING = 4096
"""Maximum number of claims of one caller that wait at once."""

RETRY_SECONDS = 5.0
"""Seconds after which a caller with too many waiting claims may claim again."""


class WaitingClaims:
    """The claims that wait, by caller and by the kind of folds that they want. For one event loop.

    Claims of one kind share their looks: one of them looks for all. Once it gets a fold, the others look too.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds and never goes backwards."""
        self._clock = clock
        self._waiting: defaultdict[Hashable, Counter[Hashable]] = defaultdict(Counter)
        self._looked_at: dict[tuple[Hashable, Hashable], float] = {}

    @property
    def count(self) -> int:
        """Number of claims that wait."""
        return sum(kinds.total() for kinds in self._waiting.values())

    @contextmanager
    def joined(self, caller: Hashable, kind: Hashable) -> Iterator[None]:
        """A claim waits while the context lasts.

        Raises:
            TooManyRequests: the caller has too many claims that wait.
        """
        kinds = self._waiting[caller]
        if kinds.total() >= MAX_WAITING:
            raise TooManyRequests(
                f"{MAX_WAITING} claims of this token wait already; let workers use tokens of their own",
                retry_after=RETRY_SECONDS,
            )
        kinds[kind] += 1
        try:
            yield
        finally:
            # Removed by each, so that the others look at once, and nothing stays after the last one.
            self._looked_at.pop((caller, kind), None)
            kinds[kind] -= 1
            if not kinds[kind]:
                del kinds[kind]
            if not kinds:
                self._waiting.pop(caller, None)

    def may_look(self, caller: Hashable, kind: Hashable) -> bool:
        """Whether a claim should look now; then it counts as having looked."""
        now = self._clock()
        pause = max(LOOK_SECONDS, len(self._waiting[caller]) / LOOKS_PER_SECOND)
        if now - self._looked_at.get((caller, kind), -pause) < pause:
            return False
        self._looked_at[caller, kind] = now
        return True
