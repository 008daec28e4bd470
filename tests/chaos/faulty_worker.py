"""A simulated worker process with the real heartbeat that reports some results twice or too late.

    python -m tests.chaos.faulty_worker URL STUDY NAME ACKNOWLEDGED

The token comes in FOLDWISE_TOKEN. A fold takes half a second; its predictions follow from its task alone, so
that it does not matter which worker runs it. Each result that the coordinator acknowledged becomes a line of
the file ACKNOWLEDGED: trial, fold, lease.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from pathlib import Path

from client.connection import Connection
from services.contracts import FoldAssignment, FoldResult
from services.errors import FoldwiseError, LeaseSuperseded, StudyOver
from tests.harness.simulated_results import make_result, seeded_predictions
from tests.harness.simulated_worker import SimulatedWorker
from worker.heartbeat import HeartbeatThread

LATE, TWICE = 0.02, 0.1
"""Shares of the folds whose result comes after its lease, or twice."""


def main() -> None:
    """Work until the study is over."""
    url, study, name, acknowledged = sys.argv[1:]
    rng = random.Random(name)
    with Connection(url, os.environ["FOLDWISE_TOKEN"], give_up_after=120) as connection:
        worker = SimulatedWorker(connection, name, study, _result)
        while True:
            try:
                _run(worker, worker.claim(), rng, Path(acknowledged))
            except StudyOver:
                return
            except LeaseSuperseded:
                worker.assignment = None


def _result(assignment: FoldAssignment) -> FoldResult:
    return make_result(assignment, seeded_predictions(assignment))


def _run(worker: SimulatedWorker, assignment: FoldAssignment, rng: random.Random, acknowledged: Path) -> None:
    lease = assignment.lease
    with HeartbeatThread(worker.client, lease) as heartbeat:
        end = time.monotonic() + rng.uniform(0.25, 0.75)
        step = 0
        while time.monotonic() < end and not heartbeat.abandoned:
            step += 1
            heartbeat.progress(0, step, None)
            time.sleep(0.05)
        if heartbeat.abandoned:
            worker.assignment = None
            return
    if rng.random() < LATE:
        time.sleep(1.5 * lease.seconds)
    verdict = worker.report()
    # One write, appended: a process that is killed leaves a whole line or none.
    with acknowledged.open("ab", buffering=0) as file:
        file.write(f"{assignment.trial} {assignment.fold} {lease.id}\n".encode())
    if rng.random() < TWICE:
        with contextlib.suppress(FoldwiseError):
            again = worker.client.report(lease, _result(assignment), more=True)
            if again != verdict.model_copy(update={"next": None}):
                raise SystemExit(f"told otherwise the second time: {verdict} {again}")


if __name__ == "__main__":
    main()
