"""How long `/livez` takes while something else happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx


@contextmanager
def livez_seconds(url: str, *, pause: float, timeout: float) -> Iterator[list[float]]:
    """Seconds of each answer of `/livez`, asked again and again while the context lasts.

    Args:
        url: of the coordinator, without a path.
        pause: seconds between two questions.
        timeout: seconds to wait for an answer.
    """
    times: list[float] = []
    over = threading.Event()

    def watch() -> None:
        with httpx.Client(timeout=timeout, trust_env=False) as client:
            while not over.wait(pause):
                started = time.perf_counter()
                client.get(f"{url}/livez").raise_for_status()
                times.append(time.perf_counter() - started)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield times
    finally:
        over.set()
        thread.join()
