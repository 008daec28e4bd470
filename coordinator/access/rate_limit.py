"""Rate limits by token bucket, in the memory of one process."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from cachetools import LRUCache

KEYS_KEPT = 10_000
"""So many keys are remembered; beyond that those longest unused are forgotten."""


class RateLimit:
    """A bucket for each key, filled with `rate` a second up to `burst`; a rate of 0 is no limit.

    For one event loop: not safe to share by threads.
    """

    def __init__(self, *, rate: float, burst: float, clock: Callable[[], float]) -> None:
        """`clock` tells seconds and never goes back."""
        self._rate = rate
        # A bucket that never holds one would let nobody pass.
        self._burst = max(1.0, burst)
        self._clock = clock
        self._buckets: LRUCache[Hashable, tuple[float, float]] = LRUCache(KEYS_KEPT)

    def take(self, key: Hashable) -> float:
        """Take one from the key's bucket, if one is there: 0. Otherwise the seconds until one will be."""
        if self._rate == 0:
            return 0.0
        now = self._clock()
        level = self._level(key, now)
        if level < 1:
            return (1 - level) / self._rate
        self._buckets[key] = level - 1, now
        return 0.0

    def put_back(self, key: Hashable) -> None:
        """Undo a `take` that turned out not to count."""
        now = self._clock()
        self._buckets[key] = min(self._burst, self._level(key, now) + 1), now

    def _level(self, key: Hashable, now: float) -> float:
        level, at = self._buckets.get(key, (self._burst, now))
        return min(self._burst, level + (now - at) * self._rate)
