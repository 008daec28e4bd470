"""Merges the logs of several pods into one stream of lines, each with its pod's name in front."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence

from k8s.cluster import Cluster
from services.errors import FoldwiseError

POLL_SECONDS = 1.0
"""Seconds between two searches for new pods."""

_MAX_QUEUED_LINES = 10_000
"""Lines read ahead of the reader, of all pods together."""


def lines_of(
    cluster: Cluster, pods: Callable[[], Sequence[str]], *, follow: bool, tail: int | None = None
) -> Generator[str]:
    """Yield lines as they arrive: with `follow` until the reader stops, otherwise to the end of each log.

    With `follow`, an empty text is yielded after each second without a line.

    Args:
        cluster: the pods' namespace.
        pods: returns the names of the pods that have a log now; called repeatedly with `follow`.
        follow: continue with new lines and new pods.
        tail: number of existing lines of each pod; None: all.
    """
    if not follow:
        for pod in pods():
            yield from _prefixed(cluster, pod, follow=False, tail=tail)
        return
    lines: queue.Queue[str] = queue.Queue(_MAX_QUEUED_LINES)
    stopping = threading.Event()
    known: set[str] = set()

    def read(pod: str) -> None:
        for line in _prefixed(cluster, pod, follow=True, tail=tail):
            while not stopping.is_set():
                try:
                    lines.put(line, timeout=POLL_SECONDS)
                    break
                except queue.Full:
                    continue
            if stopping.is_set():
                return

    try:
        while True:
            for pod in pods():
                if pod not in known:
                    known.add(pod)
                    threading.Thread(target=read, args=(pod,), name=f"log-{pod}", daemon=True).start()
            try:
                yield lines.get(timeout=POLL_SECONDS)
            except queue.Empty:
                # There is nothing to send, but by sending the caller notices that its client has gone.
                yield ""
    finally:
        stopping.set()


def _prefixed(cluster: Cluster, pod: str, *, follow: bool, tail: int | None) -> Iterator[str]:
    try:
        for line in cluster.log(pod, follow=follow, tail=tail):
            yield f"{pod} {line}\n"
    except FoldwiseError as error:
        yield f"{pod} (no log: {error.message})\n"
