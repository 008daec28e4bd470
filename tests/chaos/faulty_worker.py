"""A simulated worker process with the real heartbeat, which repeats itself, comes late, and varies.

    python -m tests.chaos.faulty_worker URL STUDY NAME FOLDER [repeatable]

The token comes in FOLDWISE_TOKEN. A fold takes half a second; its predictions follow from its lease, so another
attempt at the same fold has another result, as on GPUs of several kinds; or from its task, if they are to be
repeatable. Some results come twice or after their lease, some
claims come twice or much later. In FOLDER, each line of `sent` is a lease and the predictions that are
reported for it, each line of `acknowledged` a trial, a fold and the lease whose result the coordinator
accepted, and each line of `wrong` says what must not happen.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.connection import Connection
from services.contracts import FoldAssignment, FoldResult
from services.errors import FoldwiseError, LeaseSuperseded, NotFound, StudyOver
from tests.harness.simulated_results import leased_predictions, make_result
from tests.harness.simulated_worker import SimulatedWorker
from worker.heartbeat import HeartbeatThread

LATE, TWICE = 0.02, 0.1
"""Shares of the folds whose result comes after its lease, or twice."""

CLAIM_TWICE, CLAIM_LATE = 0.1, 0.1
"""Shares of the folds before which their claim comes again, or after which an earlier one does."""


@dataclass(frozen=True)
class Claim:
    """A claim as it was sent, and its answer; None if it got no fold."""

    request: dict[str, Any]
    lease: str | None


class RepeatingConnection(Connection):
    """Remembers claims, to send them again."""

    def __init__(self, url: str, token: str, *, give_up_after: float) -> None:
        super().__init__(url, token, give_up_after=give_up_after)
        self.claims: list[Claim] = []

    def call(self, method: str, path: str, **given: Any) -> Any:
        answer = super().call(method, path, **given)
        if path == "/claims":
            self.claims.append(Claim(given, None if answer is None else answer["lease"]["id"]))
        return answer

    def repeat(self, claim: Claim) -> str | None:
        """The lease of the answer to the same claim, if it gets one."""
        answer = super().call("POST", "/claims", **claim.request)
        return None if answer is None else str(answer["lease"]["id"])


class Records:
    """Files to which all workers append whole lines, also if they are killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, line: str) -> None:
        with (self._folder / name).open("ab", buffering=0) as file:
            file.write(f"{line}\n".encode())


def main() -> None:
    """Work until the study is over."""
    url, study, name, folder = sys.argv[1:5]
    repeatable = sys.argv[5:] == ["repeatable"]
    rng = random.Random(name)
    records = Records(Path(folder))

    def result(assignment: FoldAssignment) -> FoldResult:
        predicted = leased_predictions(assignment, repeatable=repeatable)
        records.add("sent", f"{assignment.lease.id} {json.dumps(predicted)}")
        return make_result(assignment, predicted)

    connection = RepeatingConnection(url, os.environ["FOLDWISE_TOKEN"], give_up_after=120)
    with contextlib.closing(connection):
        worker = SimulatedWorker(connection, name, study, result)
        while True:
            try:
                assignment = worker.claim()
                if rng.random() < CLAIM_TWICE and connection.claims[-1].lease == assignment.lease.id:
                    _repeat(connection, connection.claims[-1], assignment, records)
                _run(worker, assignment, rng, records)
                if rng.random() < CLAIM_LATE and worker.assignment is not None:
                    _repeat(connection, rng.choice(connection.claims), worker.assignment, records)
            except StudyOver:
                return
            except LeaseSuperseded:
                worker.assignment = None


def _repeat(connection: RepeatingConnection, claim: Claim, held: FoldAssignment, records: Records) -> None:
    """Send a claim again; the answer is the old one or a refusal, and the worker keeps what it holds."""
    try:
        lease = connection.repeat(claim)
    except (LeaseSuperseded, NotFound):
        return
    if lease not in {claim.lease, None}:
        records.add("wrong", f"a repeated claim took {lease} beside {claim.lease}; held: {held.lease.id}")


def _run(worker: SimulatedWorker, assignment: FoldAssignment, rng: random.Random, records: Records) -> None:
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
    records.add("acknowledged", f"{assignment.trial} {assignment.fold} {lease.id}")
    if rng.random() < TWICE:
        with contextlib.suppress(FoldwiseError):
            result = worker.result_for(assignment)
            again = worker.client.report(lease, result, more=True)
            if again != verdict.model_copy(update={"next": None}):
                records.add("wrong", f"told otherwise the second time: {verdict} {again}")


if __name__ == "__main__":
    main()
