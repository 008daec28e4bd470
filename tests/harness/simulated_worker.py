"""A worker that trains nothing; its calls to the coordinator are a real worker's."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from client.connection import Connection
from services.contracts import ComputePlan, FoldAssignment, FoldResult, Verdict, WorkerInfo
from tests.harness.tiny_cache import FINGERPRINT
from worker.coordinator_client import CoordinatorClient


class SimulatedWorker:
    """Claims folds of one study over HTTP and reports `result_for(assignment)` for each."""

    def __init__(
        self, connection: Connection, name: str, study: str, result_for: Callable[[FoldAssignment], FoldResult]
    ) -> None:
        self._connection = connection
        self.client = CoordinatorClient(
            connection, WorkerInfo(id=str(uuid.uuid4()), name=name, device="simulated")
        )
        self._study, self.result_for = study, result_for
        self.assignment: FoldAssignment | None = None
        """The fold that it holds."""

    def claim(self) -> FoldAssignment:
        """Return the fold that it holds, or wait for one."""
        while self.assignment is None:
            self.assignment = self.client.claim(
                study=self._study, caches=[FINGERPRINT], plans=[ComputePlan()], threads=1
            )
        return self.assignment

    def report(self) -> Verdict:
        """Report the fold that it holds, and hold the next one if the reply carries one."""
        assignment, self.assignment = self.claim(), None
        verdict = self.client.report(assignment.lease, self.result_for(assignment), more=True)
        self.assignment = verdict.next
        return verdict

    def run(self, folds: int) -> None:
        """Claim and report this many folds."""
        for _ in range(folds):
            self.report()

    def close(self) -> None:
        """Disconnect without releasing the fold that it holds; its lease expires."""
        self._connection.__exit__()
