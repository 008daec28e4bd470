"""Heartbeats of one lease, from a thread beside the training loop."""

from __future__ import annotations

import threading

import structlog

from services.contracts import Heartbeat, Lease
from services.errors import FoldwiseError
from worker.coordinator_client import CoordinatorClient

log = structlog.get_logger()


class HeartbeatThread:
    """Renews a lease while its context is open.

    Each heartbeat carries the step counter of the training loop, so that the coordinator notices a loop that
    hangs while this thread still runs.
    """

    def __init__(self, client: CoordinatorClient, lease: Lease) -> None:
        self._client = client
        self._lease = lease
        self._beat = Heartbeat(epoch=0, step=0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.abandoned = False
        """The coordinator has told the worker to stop this fold."""
        self.drained = False
        """The coordinator has told this worker to release its fold and stop."""

    def progress(self, epoch: int, step: int, loss: float | None) -> None:
        """Set how far the training loop is; the next heartbeat reports it."""
        self._beat = Heartbeat(epoch=epoch, step=step, loss=loss)

    def __enter__(self) -> HeartbeatThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._lease.heartbeat_seconds):
            try:
                reply = self._client.heartbeat(self._lease, self._beat)
            except FoldwiseError as error:
                log.warning("heartbeat_failed", lease=self._lease.id, error=error.message)
                continue
            self.abandoned = reply.command == "abandon"
            self.drained = reply.command == "drain"
            if self.abandoned or self.drained:
                return
