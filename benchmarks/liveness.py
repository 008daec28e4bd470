"""How long one caller, one study, a frozen database or a lost machine keeps a coordinator from the others.

    python -m benchmarks.liveness [--studies 10000]

Each part has its own coordinator and PostgreSQL on this machine. The part `lost leader` needs root, because it
runs a coordinator in a network namespace; without root it is skipped.

The last line is JSON; seconds unless the name says otherwise:
    lost_leader_s            from the cut of the leader's network until another one leads; null if skipped
    frozen_livez_p99_s       `/livez` while PostgreSQL is stopped and 60 requests wait for it
    wrong_items_s            until 14 MiB of wrong items, sent as a worker, are refused; the slowest shape
    wrong_items_mb           memory that the coordinator had more after them than before
    others_during_items_s    the slowest `/livez` while they were refused
    quiet_ms, waiting_ms     median of `GET /studies?limit=1` without and with 300 waiting claims of many kinds
    waiting_ratio            their ratio
    list_s, page_s, metrics_s   with `--studies` studies: the first 1,000 as JSON, the first page, the metrics
    projection_s             until 800 trials of 118 folds are in Optuna
    overdue_s                the longest that an expired lease of another study waited during the projection
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path

import aiohttp
import httpx
import psutil
from rich.console import Console
from sqlalchemy import Engine, create_engine, text

from benchmarks.bench_study import FINGERPRINT, study_spec, write_cache, write_trials
from cli.local.embedded_postgres import PostgresServer, embedded_postgres
from cli.local.ports import bind
from client.connection import Connection
from client.study_client import StudyClient
from services.contracts import StudySpec
from tests.harness.frozen_postgres import frozen
from tests.harness.lost_machine import coordinator, cut, leads, namespace, postgres_on_tcp
from tests.harness.stopwatch import livez_seconds

ADMIN, WORKER = "admin-token-of-the-benchmark", "worker-token-of-the-benchmark"
WAITING = 300
FROZEN_SECONDS = 20.0
FOLDS = 118
TRIALS = 800
"""The paper's search: 800 trials of 118 folds."""


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=10_000)
    arguments = parser.parse_args()
    console = Console()
    figures: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        write_cache(folder / "caches", subjects=FOLDS)
        figures["lost_leader_s"] = _lost_leader(folder / "lost")
        for part in (_frozen, _wrong_items, _waiting_claims, _projection):
            figures |= _in_service(folder, part)
        figures |= _in_service(folder, lambda service: _many_studies(service, arguments.studies))
    for key, value in figures.items():
        console.print(f"  {key:26} {'skipped' if value is None else f'{value:.3f}'}", highlight=False)
    print(json.dumps({key: None if value is None else round(value, 4) for key, value in figures.items()}))


class _Service:
    """A coordinator in its own process, and its PostgreSQL."""

    def __init__(self, url: str, process: psutil.Process, postgres: PostgresServer, engine: Engine) -> None:
        self.url = url
        self.process = process
        self.postgres = postgres
        self.engine = engine
        self.http = httpx.Client(base_url=url, timeout=300, trust_env=False)

    def get(self, path: str) -> float:
        """Seconds of a request with the admin's token."""
        started = time.perf_counter()
        answer = self.http.get(path, headers=_bearer(ADMIN))
        answer.raise_for_status()
        return time.perf_counter() - started


def _in_service(folder: Path, part: Callable[[_Service], dict[str, float]]) -> dict[str, float]:
    state = folder / uuid.uuid4().hex[:8]
    state.mkdir(mode=0o755)
    with (
        embedded_postgres(state / "postgres") as postgres,
        bind("127.0.0.1", 0) as listener,
        (state / "log").open("wb") as log,
    ):
        command = [sys.executable, "-m", "cli.main", "coordinator", "--fd", str(listener.fileno())]
        process = subprocess.Popen(  # noqa: S603 - our own program
            [*command, "--cache-root", str(folder / "caches")],
            env={
                **os.environ,
                "FOLDWISE_DATABASE_URL": postgres.url,
                "FOLDWISE_ADMIN_TOKEN": ADMIN,
                "FOLDWISE_WORKER_TOKEN": WORKER,
            },
            pass_fds=(listener.fileno(),),
            stdout=log,
            stderr=log,
        )
        engine = create_engine(postgres.url)
        try:
            service = _Service(
                f"http://127.0.0.1:{listener.getsockname()[1]}", psutil.Process(process.pid), postgres, engine
            )
            service.get("/readyz")
            with closing(service.http):
                return part(service)
        finally:
            engine.dispose()
            process.kill()
            process.wait()


# --- Parts ------------------------------------------------------------------------------------------------


def _lost_leader(folder: Path) -> float | None:
    folder.mkdir(mode=0o755)
    try:
        with ExitStack() as stack:
            stack.enter_context(namespace())
            url = stack.enter_context(postgres_on_tcp(folder))
            lost = stack.enter_context(coordinator(url, folder, lost=True))
            _until(lambda: leads(lost) is True)
            other = stack.enter_context(coordinator(url, folder, lost=False))
            _until(lambda: leads(other) is False)
            cut()
            started = time.monotonic()
            _until(lambda: leads(other) is True)
            return time.monotonic() - started
    except PermissionError:
        return None


def _frozen(service: _Service) -> dict[str, float]:
    with ThreadPoolExecutor(60) as callers, _livez(service) as livez:
        with frozen(service.postgres):
            for _ in range(60):
                callers.submit(httpx.get, f"{service.url}/readyz", timeout=2 * FROZEN_SECONDS, trust_env=False)
            time.sleep(FROZEN_SECONDS)
        livez_frozen = list(livez)
    return {"frozen_livez_p99_s": _p99(livez_frozen)}


def _wrong_items(service: _Service) -> dict[str, float]:
    """Bodies of 14 MiB whose items all are wrong, in several shapes."""
    size = 14 * 2**20
    headers = {**_bearer(WORKER), "Lease-Term": "1", "Lease-Secret": "s", "Content-Type": "application/json"}
    shapes = {
        "numbers": (b'{"epochs":[', b"1,", b"1]}"),
        "floats": (b'{"epochs":[', b"0.1,", b"1]}"),
        "objects": (b'{"epochs":[', b"{},", b"{}]}"),
        "lists": (b'{"epochs":[{"loss":0,"predicted":[0],"probabilities":[', b"[],", b"[]]}]}"),
        "texts": (b'{"epochs":[', b'"ab",', b'"a"]}'),
    }
    slowest, before = 0.0, service.process.memory_info().rss
    with _livez(service) as livez:
        for begin, item, end in shapes.values():
            body = begin + item * ((size - len(begin) - len(end)) // len(item)) + end
            started = time.perf_counter()
            answer = service.http.put("/api/v1/leases/l/result", content=body, headers=headers)
            slowest = max(slowest, time.perf_counter() - started)
            assert answer.status_code == 422, answer.text  # noqa: S101 - else nothing was measured
    more = (service.process.memory_info().rss - before) / 1e6
    return {"wrong_items_s": slowest, "wrong_items_mb": more, "others_during_items_s": max(livez)}


def _waiting_claims(service: _Service) -> dict[str, float]:
    def medians() -> float:
        return 1e3 * statistics.median(service.get("/api/v1/studies?limit=1") for _ in range(100))

    quiet = medians()
    begun = threading.Event()
    loop = asyncio.new_event_loop()

    async def claim(session: aiohttp.ClientSession, number: int) -> None:
        worker = {"id": f"worker-{number:04}", "name": f"w{number}", "device": "cpu"}
        body = {"worker": worker, "caches": [f"{number:064x}"], "wait_seconds": 20}
        headers = {**_bearer(WORKER), "Idempotency-Key": str(uuid.uuid4())}
        async with session.post(f"{service.url}/api/v1/claims", json=body, headers=headers) as answer:
            if answer.status != httpx.codes.NO_CONTENT:
                raise SystemExit(f"a claim got {answer.status}: {await answer.text()}")

    async def claim_all() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            claims = [asyncio.ensure_future(claim(session, number)) for number in range(WAITING)]
            await asyncio.sleep(4)
            begun.set()
            await asyncio.gather(*claims)

    thread = threading.Thread(target=loop.run_until_complete, args=(claim_all(),))
    thread.start()
    begun.wait(60)
    waiting = medians()
    thread.join()
    loop.close()
    return {"quiet_ms": quiet, "waiting_ms": waiting, "waiting_ratio": waiting / quiet}


def _projection(service: _Service) -> dict[str, float]:
    with Connection(service.url, ADMIN, give_up_after=60) as connection:
        client = StudyClient(connection)
        client.create(StudySpec.model_validate(study_spec("large", trials=TRIALS, start=False)))
        study = _scalar(service, "SELECT id FROM foldwise.studies")
        write_trials(
            service.engine, study, first=0, trials=TRIALS, folds_done=FOLDS, folds=FOLDS, state="complete"
        )
        client.create(StudySpec.model_validate(study_spec("small", trials=1000, sampler={"kind": "random"})))
    _until(lambda: _scalar(service, "SELECT count(*) FROM foldwise.outbox") == 0)
    overdue = [0.0]
    over = threading.Event()
    expiring = threading.Thread(target=_let_leases_expire, args=(service, over, overdue))
    expiring.start()
    with service.engine.begin() as database:
        database.execute(
            text(
                "INSERT INTO foldwise.outbox (trial_id) SELECT trials.id FROM foldwise.trials"
                " JOIN foldwise.studies ON studies.id = study_id WHERE name = 'large'"
            )
        )
    started = time.monotonic()
    _until(
        lambda: (
            _scalar(
                service,
                "SELECT count(*) FROM foldwise.outbox JOIN foldwise.trials ON trials.id = trial_id"
                " JOIN foldwise.studies ON studies.id = study_id WHERE name = 'large'",
            )
            == 0
        )
    )
    seconds = time.monotonic() - started
    over.set()
    expiring.join()
    if not overdue[0]:
        raise SystemExit("no lease expired while the study was projected")
    return {"projection_s": seconds, "overdue_s": overdue[0]}


def _let_leases_expire(service: _Service, over: threading.Event, overdue: list[float]) -> None:
    """Claim folds of the small study, let each lease expire at once, and see how long it stands."""
    number = 0
    while not over.is_set():
        number += 1
        headers = {**_bearer(WORKER), "Idempotency-Key": str(uuid.uuid4())}
        worker = {"id": f"worker-{number:04}", "name": f"w{number}", "device": "cpu"}
        body = {"worker": worker, "caches": [FINGERPRINT], "study": "small", "wait_seconds": 20}
        answer = httpx.post(
            f"{service.url}/api/v1/claims", json=body, headers=headers, timeout=60, trust_env=False
        )
        answer.raise_for_status()
        if answer.status_code != httpx.codes.OK:
            continue
        lease = {"id": answer.json()["lease"]["id"]}
        with service.engine.begin() as database:
            database.execute(
                text("UPDATE foldwise.leases SET expires_at = clock_timestamp() WHERE id = :id"), lease
            )
        waited = text(
            "SELECT extract(epoch FROM coalesce(ended_at, clock_timestamp()) - expires_at), outcome"
            " FROM foldwise.leases WHERE id = :id"
        )
        while True:
            with service.engine.connect() as database:
                seconds, outcome = database.execute(waited, lease).one()
            overdue[0] = max(overdue[0], float(seconds))
            if outcome is not None:
                break
            time.sleep(0.05)


def _many_studies(service: _Service, studies: int) -> dict[str, float]:
    with Connection(service.url, ADMIN, give_up_after=60) as connection:
        StudyClient(connection).create(StudySpec.model_validate(study_spec("first", trials=10, start=False)))
    columns = "state, spec, dataset, fingerprint, classes, clips, fold_count, split_hash, priority"
    with service.engine.begin() as database:
        database.execute(
            text(
                f"INSERT INTO foldwise.studies (name, {columns})"  # noqa: S608 - no input
                f" SELECT 's' || n, {columns} FROM foldwise.studies, generate_series(2, :studies) AS n"
            ),
            {"studies": studies},
        )
        database.execute(
            text(
                "INSERT INTO foldwise.trials"
                " (study_id, number, parameters, parameters_hash, state, value, completed)"
                " SELECT id, n, '{}', n::text, 'complete', random(), n + 1"
                " FROM foldwise.studies, generate_series(0, 2) AS n"
            )
        )
    with service.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as database:
        database.execute(text("VACUUM ANALYZE"))
    paths = {"list_s": "/api/v1/studies", "page_s": "/", "metrics_s": "/metrics"}
    return {key: statistics.median(service.get(path) for _ in range(3)) for key, path in paths.items()}


# --- Helpers ----------------------------------------------------------------------------------------------


def _livez(service: _Service) -> AbstractContextManager[list[float]]:
    return livez_seconds(service.url, pause=0.1, timeout=60.0)


def _until(condition: Callable[[], bool], *, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"a condition was not met within {seconds:.0f} s")
        time.sleep(0.1)


def _scalar(service: _Service, query: str) -> int:
    with service.engine.connect() as database:
        return int(database.execute(text(query)).scalar_one())


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * (len(seconds) - 1))]


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


if __name__ == "__main__":
    main()
