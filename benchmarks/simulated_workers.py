"""Many workers in one process that make their results up: the load of a large cluster on a coordinator.

They speak the worker's protocol over HTTP, each with a connection of its own: claim, wait as long as a fold
takes, report, go on with the fold that the reply carries.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from benchmarks.made_up import FINGERPRINT, made_up_result
from services.contracts import ClaimRequest, FoldAssignment, Verdict, WorkerInfo


@dataclass
class Load:
    """What the workers saw."""

    reports: int = 0
    seconds: float = 0.0
    gaps: list[float] = field(default_factory=list)
    """Seconds of a worker between the end of a fold and the next fold at hand."""

    later_gaps: list[float] = field(default_factory=list)
    """Those but a worker's first, before which it had no fold."""

    folding: float = 0.0
    """Seconds spent on folds, of all workers."""

    errors: list[str] = field(default_factory=list)


def simulate(
    url: str,
    token: str,
    *,
    workers: int,
    seconds: float,
    fold_seconds: float,
    study: str,
    reports: int | None = None,
) -> Load:
    """Let workers work for so long, or until there were so many reports.

    Args:
        url: of the coordinator, as http://HOST:PORT.
        token: of the scope worker.
        fold_seconds: how long a fold takes, on average; half of it to one and a half times.
    """
    return asyncio.run(_simulate(url, token, workers, seconds, fold_seconds, study, reports))


async def _simulate(
    url: str, token: str, workers: int, seconds: float, fold_seconds: float, study: str, reports: int | None
) -> Load:
    load = Load()
    started = time.monotonic()

    def over() -> bool:
        return time.monotonic() - started > seconds or (reports is not None and load.reports >= reports)

    # A client for each: one pool of many connections looks through all of them for every request.
    context = httpx.create_ssl_context()

    async def work(number: int) -> None:
        async with httpx.AsyncClient(
            base_url=f"{url}/api/v1",
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            timeout=60,
            trust_env=False,
            verify=context,
        ) as http:
            await _work(http, number, fold_seconds, study, load, over)

    await asyncio.gather(*(work(number) for number in range(workers)))
    load.seconds = time.monotonic() - started
    return load


async def _work(
    http: httpx.AsyncClient, number: int, fold_seconds: float, study: str, load: Load, over: Callable[[], bool]
) -> None:
    rng = random.Random(number)
    info = WorkerInfo(id=str(uuid.uuid4()), name=f"simulated-{number}", device="none")
    claim = ClaimRequest(worker=info, study=study, caches=(FINGERPRINT,), wait_seconds=20)
    assignment: FoldAssignment | None = None
    first, waiting_since = True, time.monotonic()
    while not over():
        if assignment is None:
            answer = await _send(
                http, "POST", "/claims", claim.model_dump_json(), {"Idempotency-Key": str(uuid.uuid4())}
            )
            if answer.status_code == httpx.codes.OK:
                assignment = FoldAssignment.model_validate_json(answer.content)
            elif answer.status_code != httpx.codes.NO_CONTENT:
                load.errors.append(f"claim: {answer.status_code} {answer.text[:200]}")
                return
            continue
        began = time.monotonic()
        load.gaps.append(began - waiting_since)
        if not first:
            load.later_gaps.append(began - waiting_since)
        first = False
        await asyncio.sleep(fold_seconds * rng.uniform(0.5, 1.5))
        waiting_since = time.monotonic()
        load.folding += waiting_since - began
        lease = assignment.lease
        answer = await _send(
            http,
            "PUT",
            f"/leases/{lease.id}/result",
            made_up_result(assignment, rng).model_dump_json(),
            {"Lease-Term": str(lease.term), "Lease-Secret": lease.secret},
        )
        if answer.status_code != httpx.codes.OK:
            load.errors.append(f"report: {answer.status_code} {answer.text[:200]}")
            return
        load.reports += 1
        assignment = Verdict.model_validate_json(answer.content).next


async def _send(
    http: httpx.AsyncClient, method: str, path: str, content: str, headers: dict[str, str]
) -> httpx.Response:
    """Once more where the server closed an idle connection at that moment, as a worker does."""
    try:
        return await http.request(method, path, content=content, headers=headers)
    except httpx.TransportError:
        return await http.request(method, path, content=content, headers=headers)
