"""A worker process without a network to train: the protocol, its clients and its heartbeat are the real ones.

    python -m tests.chaos.simulated_worker URL STUDY NAME ACKNOWLEDGED

The token comes in FOLDWISE_TOKEN. A fold takes half a second; what is wrong follows from its task alone, so
that it matters not who runs it. Now and then a result is sent twice, or after its lease has lapsed. Each result
that was acknowledged becomes a line of the file ACKNOWLEDGED: trial, fold, lease.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
import uuid
from pathlib import Path

from client.connection import Connection
from services.contracts import ComputePlan, FoldAssignment, FoldTask, WorkerInfo
from services.errors import FoldwiseError, LeaseSuperseded, StudyOver
from services.seeds import derive_seed
from tests.harness.coordinator_harness import FINGERPRINT, make_result
from worker.coordinator_client import CoordinatorClient
from worker.heartbeat import HeartbeatThread

LATE, TWICE = 0.02, 0.1
"""Shares of the folds whose result comes after its lease, or twice."""


def predictions(task: FoldTask) -> list[int]:
    """Of two classes, for each test clip; the label hides in the clip's name."""
    rng = random.Random(derive_seed("chaos", task.seed))
    truth = [int(clip.endswith("happy")) for clip in task.test_clips]
    skill = 0.5 + 0.1 * (task.hyperparameters.temporal_size // 2)
    return [label if rng.random() < skill else 1 - label for label in truth]


def main() -> None:
    """Work until the study is over."""
    url, study, name, acknowledged = sys.argv[1:]
    rng = random.Random(name)
    info = WorkerInfo(id=str(uuid.uuid4()), name=name, device="simulated")
    with Connection(url, os.environ["FOLDWISE_TOKEN"], give_up_after=120) as connection:
        client = CoordinatorClient(connection, info)
        assignment: FoldAssignment | None = None
        while True:
            try:
                if assignment is None:
                    assignment = client.claim(study=study, caches=[FINGERPRINT], plans=[ComputePlan()])
                else:
                    assignment = _run(client, assignment, rng, Path(acknowledged))
            except StudyOver:
                return
            except LeaseSuperseded:
                assignment = None


def _run(
    client: CoordinatorClient, assignment: FoldAssignment, rng: random.Random, acknowledged: Path
) -> FoldAssignment | None:
    lease = assignment.lease
    with HeartbeatThread(client, lease) as heartbeat:
        end = time.monotonic() + rng.uniform(0.25, 0.75)
        step = 0
        while time.monotonic() < end and not heartbeat.abandoned:
            step += 1
            heartbeat.progress(0, step, None)
            time.sleep(0.05)
        if heartbeat.abandoned:
            return None
    if rng.random() < LATE:
        time.sleep(1.5 * lease.seconds)
    result = make_result(assignment, predictions(assignment))
    verdict = client.report(lease, result, more=True)
    # One write, appended: a process that is killed leaves a whole line or none.
    with acknowledged.open("ab", buffering=0) as file:
        file.write(f"{assignment.trial} {assignment.fold} {lease.id}\n".encode())
    if rng.random() < TWICE:
        with contextlib.suppress(FoldwiseError):
            again = client.report(lease, result, more=True)
            if again != verdict.model_copy(update={"next": None}):
                raise SystemExit(f"told otherwise the second time: {verdict} {again}")
    return verdict.next


if __name__ == "__main__":
    main()
