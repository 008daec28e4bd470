"""Rate limits by token bucket, in the memory of one process."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from cachetools import LRUCache

MAX_KEYS = 10_000
"""Maximum number of keys with a bucket; the least recently used one is dropped first."""


class RateLimit:
    """A token bucket per key, filled with `rate` tokens a second up to `burst`; a rate of 0 means no limit.

    Not thread-safe: for one event loop.
    """

    def __init__(self, *, rate: float, burst: float, clock: Callable[[], float]) -> None:
        """`clock` returns seconds and never goes backwards."""
        self._rate = rate
        # A bucket that holds less than one token would reject every request.
        self._burst = max(1.0, burst)
        self._clock = clock
        self._buckets: LRUCache[Hashable, tuple[float, float]] = LRUCache(MAX_KEYS)

    def take(self, key: Hashable) -> float:
        """Take one token from the key's bucket and return 0, or return the seconds until there is one."""
        if self._rate == 0:
            return 0.0
        now = self._clock()
        level = self._level(key, now)
        if level < 1:
            return (1 - level) / self._rate
        self._buckets[key] = level - 1, now
        return 0.0

    def put_back(self, key: Hashable) -> None:
        """Undo a `take` that should not count."""
        now = self._clock()
        self._buckets[key] = min(self._burst, self._level(key, now) + 1), now

    def _level(self, key: Hashable, now: float) -> float:
        level, at = self._buckets.get(key, (self._burst, now))
        return min(self._burst, level + (now - at) * self._rate)
