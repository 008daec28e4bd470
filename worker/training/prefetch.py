"""Load items ahead of the loop that uses them, in another thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def prefetched(load: Callable[[Item], Loaded], items: Iterable[Item], *, ahead: int) -> Iterator[Loaded]:
    """`load(item)` of each item in order; a thread works up to `ahead` items ahead of the caller.

    An exception of `load` is raised where its result would have come. If the caller stops early, nothing
    further is loaded.
    """
    remaining = iter(items)
    loading: deque[Future[Loaded]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        try:
            loading.extend(thread.submit(load, item) for item in islice(remaining, ahead))
            while loading:
                loaded = loading.popleft().result()
                loading.extend(thread.submit(load, item) for item in islice(remaining, 1))
                yield loaded
        finally:
            for future in loading:
                future.cancel()
