"""The logs of several pods as one stream of lines, each beginning with its pod's name."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence

from k8s.cluster import Cluster
from services.errors import FoldwiseError

POLL_SECONDS = 1.0
"""New pods are looked for so often."""

_MAX_QUEUED_LINES = 10_000


def lines_of(
    cluster: Cluster, pods: Callable[[], Sequence[str]], *, follow: bool, tail: int | None = None
) -> Generator[str]:
    """Lines as they come; with `follow` until nobody reads them, otherwise to the end of each log.

    Args:
        cluster: whose pods they are.
        pods: names those that have a log now; asked again and again with `follow`.
        follow: go on with what is written from now on, and with new pods.
        tail: so many lines of what each pod has written already; None for all.
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
                # Nothing to send, but whoever sends it must learn when nobody listens any more.
                yield ""
    finally:
        stopping.set()


def _prefixed(cluster: Cluster, pod: str, *, follow: bool, tail: int | None) -> Iterator[str]:
    try:
        for line in cluster.log(pod, follow=follow, tail=tail):
            yield f"{pod} {line}\n"
    except FoldwiseError as error:
        yield f"{pod} (no log: {error.message})\n"
