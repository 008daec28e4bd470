"""A copy of some objects of a cluster, kept up to date by a watch."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from k8s.cluster import Cluster, Manifest, WatchTooOld
from services.errors import FoldwiseError

log = structlog.get_logger()

RETRY_SECONDS = 2.0
"""Seconds to wait after a broken watch before listing again."""


class Watched(threading.Thread):
    """The objects of one resource that match a label selector. Any thread may read them."""

    def __init__(
        self,
        cluster: Cluster,
        group: str,
        resource: str,
        selector: str,
        *,
        on_change: Callable[[Manifest, bool], None],
    ) -> None:
        """A copy that is empty until the thread has listed the objects.

        Args:
            cluster: the namespace.
            group: API group; empty for the core group.
            resource: plural name, such as `jobs`.
            selector: label selector.
            on_change: called in this thread with an object and whether it was deleted (True), or added or
                changed (False).
        """
        super().__init__(name=f"watch-{resource}", daemon=True)
        self._cluster = cluster
        self._group = group
        self._resource = resource
        self._selector = selector
        self._on_change = on_change
        self._objects: dict[str, Manifest] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.listed = threading.Event()
        """Set once the copy is complete."""

    def all(self) -> list[Manifest]:
        """The objects in their last known state."""
        with self._lock:
            return list(self._objects.values())

    def stop(self) -> None:
        """Report no more changes; the thread ends when its connection closes."""
        self._stopping.set()

    def run(self) -> None:
        """List, watch, and list again whenever the watch breaks."""
        while not self._stopping.is_set():
            try:
                version = self._list()
                while not self._stopping.is_set():
                    version = self._watch(version)
            except WatchTooOld:
                continue
            except (FoldwiseError, RuntimeError) as error:
                # RuntimeError: the client was closed under a watch.
                if not self._stopping.is_set():
                    log.warning("watch_broke", resource=self._resource, error=str(error))
                self._stopping.wait(RETRY_SECONDS)

    def _list(self) -> str:
        answer = self._cluster.list(self._group, self._resource, labelSelector=self._selector)
        found = {item["metadata"]["uid"]: item for item in answer["items"]}
        with self._lock:
            gone = [item for uid, item in self._objects.items() if uid not in found]
            self._objects = found
        for item in gone:
            self._notify(item, gone=True)
        for item in found.values():
            self._notify(item, gone=False)
        self.listed.set()
        return str(answer["metadata"]["resourceVersion"])

    def _watch(self, version: str) -> str:
        changes = self._cluster.watch(self._group, self._resource, version, labelSelector=self._selector)
        for kind, item in changes:
            if self._stopping.is_set():
                break
            version = item["metadata"]["resourceVersion"]
            if kind == "BOOKMARK":
                continue
            gone = kind == "DELETED"
            with self._lock:
                if gone:
                    self._objects.pop(item["metadata"]["uid"], None)
                else:
                    self._objects[item["metadata"]["uid"]] = item
            self._notify(item, gone=gone)
        return version

    def _notify(self, item: Manifest, *, gone: bool) -> None:
        if not self._stopping.is_set():
            self._on_change(item, gone)
