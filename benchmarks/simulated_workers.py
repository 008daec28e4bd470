"""Many simulated workers in one process: the load of a large cluster on a coordinator.

They speak the worker's protocol over HTTP, each on its own connection: claim a fold, wait as long as it would
take, report a random result, continue with the fold in the reply. Their HTTP client uses little CPU time, which
leaves the rest to the coordinator.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp

from benchmarks.bench_study import FINGERPRINT
from services.contracts import ClaimRequest, FoldAssignment, Verdict, WorkerInfo
from tests.harness.simulated_results import random_result


@dataclass
class Load:
    """What the workers measured."""

    reports: int = 0
    seconds: float = 0.0
    gaps: list[float] = field(default_factory=list)
    """Seconds from the end of a worker's fold until it has the next one."""

    later_gaps: list[float] = field(default_factory=list)
    """`gaps` without the wait before each worker's first fold."""

    training: float = 0.0
    """Seconds of simulated training, summed over all workers."""

    errors: list[str] = field(default_factory=list)


def simulate(
    urls: Sequence[str],
    token: str,
    *,
    workers: int,
    seconds: float,
    fold_seconds: float,
    study: str,
    reports: int | None = None,
) -> Load:
    """Run simulated workers for some time, or until a number of reports.

    Args:
        urls: URLs of the coordinators, as http://HOST:PORT; each worker uses one of them.
        token: a token of the scope worker.
        workers: number of workers.
        seconds: maximum duration.
        fold_seconds: mean duration of a fold; durations are uniform between 0.5 and 1.5 times the mean.
        study: name of the study to work for.
        reports: stop after this number of reports; None means no limit.
    """
    return asyncio.run(_simulate(urls, token, workers, seconds, fold_seconds, study, reports))


async def _simulate(
    urls: Sequence[str],
    token: str,
    workers: int,
    seconds: float,
    fold_seconds: float,
    study: str,
    reports: int | None,
) -> Load:
    load = Load()
    started = time.monotonic()

    def over() -> bool:
        return time.monotonic() - started > seconds or (reports is not None and load.reports >= reports)

    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        timeout=aiohttp.ClientTimeout(60),
        connector=aiohttp.TCPConnector(limit=0),
    ) as http:
        work = (
            _work(http, urls[number % len(urls)], number, fold_seconds, study, load, over)
            for number in range(workers)
        )
        await asyncio.gather(*work)
    load.seconds = time.monotonic() - started
    return load


async def _work(
    http: aiohttp.ClientSession,
    url: str,
    number: int,
    fold_seconds: float,
    study: str,
    load: Load,
    over: Callable[[], bool],
) -> None:
    rng = random.Random(number)
    info = WorkerInfo(id=str(uuid.uuid4()), name=f"simulated-{number}", device="none")
    claim = ClaimRequest(worker=info, study=study, caches=(FINGERPRINT,), wait_seconds=20)
    assignment: FoldAssignment | None = None
    first, waiting_since = True, time.monotonic()
    while not over():
        if assignment is None:
            status, answer = await _send(
                http,
                "POST",
                f"{url}/api/v1/claims",
                claim.model_dump_json(),
                {"Idempotency-Key": str(uuid.uuid4())},
            )
            if status == HTTPStatus.OK:
                assignment = FoldAssignment.model_validate_json(answer)
            elif status != HTTPStatus.NO_CONTENT:
                load.errors.append(f"claim: {status} {answer[:200]!r}")
                return
            continue
        began = time.monotonic()
        load.gaps.append(began - waiting_since)
        if not first:
            load.later_gaps.append(began - waiting_since)
        first = False
        await asyncio.sleep(fold_seconds * rng.uniform(0.5, 1.5))
        waiting_since = time.monotonic()
        load.training += waiting_since - began
        lease = assignment.lease
        status, answer = await _send(
            http,
            "PUT",
            f"{url}/api/v1/leases/{lease.id}/result",
            random_result(assignment, rng).model_dump_json(),
            {"Lease-Term": str(lease.term), "Lease-Secret": lease.secret},
        )
        if status != HTTPStatus.OK:
            load.errors.append(f"report: {status} {answer[:200]!r}")
            return
        load.reports += 1
        assignment = Verdict.model_validate_json(answer).next


async def _send(
    http: aiohttp.ClientSession, method: str, url: str, content: str, headers: dict[str, str]
) -> tuple[int, bytes]:
    """Send a request and return status and body; retry once if the server has closed an idle connection."""
    try:
        return await _send_once(http, method, url, content, headers)
    except aiohttp.ClientConnectionError:
        return await _send_once(http, method, url, content, headers)


async def _send_once(
    http: aiohttp.ClientSession, method: str, url: str, content: str, headers: dict[str, str]
) -> tuple[int, bytes]:
    async with http.request(method, url, data=content, headers=headers) as answer:
        return answer.status, await answer.read()
