"""What the coordinator costs as studies grow, and against Optuna doing the same on the same PostgreSQL.

    python -m benchmarks.coordinator [--finished 10000] [--reports 100000] [--workers 200] [--coordinators 2]

No training: results are made up. In turn, so that a change of the machine's speed hits both sides:

1. Claims: `scheduling.claim` and `release`, as transactions, with 100 finished trials and with `--finished`.
2. Reports: `scheduling.report` (check, store, decide by median, lease the next fold, commit) against Optuna's
   `trial.report` and `should_prune` with its MedianPruner, both in process, with 64 running trials of 60 values
   each and the same number of finished ones, in a Leave-One-Subject-Out study of 118 folds.
3. Over HTTP, with a coordinator process and simulated workers, up to eight at a trial: 24 of them with folds of
   a second, for the time a worker waits between two folds; `--many` of them with folds of twenty seconds, for
   the share of their time that they wait; `--workers` of them with no training at all, for the reports that one
   coordinator takes; then so many of them with `--coordinators` processes until `--reports` are in.

The last line is JSON:
    claim_p95_growth   95th percentile of a claim with many finished trials over that with 100
    report_vs_optuna   median of our report and decision over that of Optuna's two calls
    report_ms, optuna_report_ms, claim_p95_ms
    reports_per_s      over HTTP, with all workers at once, of all coordinators together; and of one alone:
    reports_per_s_of_one, coordinators, reports, workers
    connections        most connections to PostgreSQL at any moment of that
    rss_growth         memory of the coordinators at its end over that after a tenth of the reports
    idle_gap_p95_s     95th percentile of a worker's wait between the end of a fold and its next
    many, idle_share   so many workers with folds of 20 s, and the share of their time between folds
    errors             answers other than success
    round_trip_ms      median of `SELECT 1` from here: what the machine was like in that hour
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import optuna
import psutil
import structlog
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.orm import sessionmaker

from benchmarks.bench_study import FINGERPRINT, study_spec, write_cache, write_trials
from benchmarks.simulated_workers import Load, simulate
from cli.local.embedded_postgres import embedded_postgres
from cli.local.ports import bind
from cli.local.service import LocalService, local_service
from cli.local.state import StateFolder
from coordinator.optimizer import distributions
from coordinator.scheduling import claims, leases, reports
from coordinator.scheduling.leases import LeaseKey
from coordinator.settings import CoordinatorSettings
from coordinator.store.database import connect, migrate
from coordinator.studies import life
from services.contracts import ClaimRequest, FoldAssignment, StudySpec, WorkerInfo
from tests.harness.simulated_results import random_result

SUBJECTS = 118
"""Folds of a Leave-One-Subject-Out study of CK+."""

RUNNING, RUNNING_FOLDS = 64, 60

LEASE_SECONDS = 90
"""As in a cluster: of a machine's own, those of the many would lapse before a fold of theirs ends."""

FEW = 100


@dataclass(frozen=True)
class Tables:
    """The coordinator's functions on a database of its own, without HTTP."""

    engine: Engine
    settings: CoordinatorSettings

    def create(self, **spec: object) -> int:
        """A study; its id."""
        with sessionmaker(self.engine).begin() as session:
            given = StudySpec.model_validate(study_spec("bench", **spec))
            return life.create(session, given, self.settings.cache_root).id

    def claim(self, worker: str) -> FoldAssignment:
        """One transaction."""
        info = WorkerInfo(id=f"worker-{worker}", name=worker, device="none")
        request = ClaimRequest(worker=info, caches=(FINGERPRINT,), wait_seconds=0)
        with sessionmaker(self.engine).begin() as session:
            assignment = claims.claim(session, request, str(uuid.uuid4()), self.settings)
        if assignment is None:
            raise RuntimeError("there is no fold to claim")
        return assignment

    def release(self, assignment: FoldAssignment) -> None:
        """One transaction."""
        with sessionmaker(self.engine).begin() as session:
            leases.release(session, _key(assignment))

    def report(self, assignment: FoldAssignment, rng: random.Random) -> FoldAssignment | None:
        """One transaction; the lease that follows."""
        result = random_result(assignment, rng)
        with sessionmaker(self.engine, expire_on_commit=False).begin() as session:
            return reports.report(session, _key(assignment), result, self.settings).next


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--finished", type=int, default=10_000, help="trials of the long history")
    parser.add_argument("--claims", type=int, default=400)
    parser.add_argument("--finished-loso", type=int, default=64, help="finished trials beside the running ones")
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--many", type=int, default=500)
    parser.add_argument("--reports", type=int, default=100_000)
    parser.add_argument("--coordinators", type=int, default=2, help="processes on the same database")
    arguments = parser.parse_args()
    console = Console()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        figures = _claims(folder / "claims", console, finished=arguments.finished, claims=arguments.claims)
        figures |= _reports(folder / "reports", console, finished=arguments.finished_loso)
        figures |= _over_http(
            folder / "http",
            console,
            workers=arguments.workers,
            many=arguments.many,
            reports=arguments.reports,
            coordinators=arguments.coordinators,
        )
    print(json.dumps(figures))


# --- 1. Claims --------------------------------------------------------------------------------------------


def _claims(folder: Path, console: Console, *, finished: int, claims: int) -> dict[str, float]:
    taken: dict[int, list[float]] = {FEW: [], finished: []}
    with _databases(folder, folds=10, names=["few", "many"]) as (few, many):
        for tables, count in ((few, FEW), (many, finished)):
            study = tables.create(protocol={"kind": "kfold", "k": 10}, trials=count + 4)
            write_trials(tables.engine, study, first=0, trials=count, folds_done=10, folds=10, state="complete")
            write_trials(tables.engine, study, first=count, trials=4, folds_done=0, folds=10, state="ready")
        round_trip = _round_trip(few.engine)
        for _ in range(claims):
            for tables, count in ((few, FEW), (many, finished)):
                started = time.perf_counter()
                assignment = tables.claim("one")
                taken[count].append(time.perf_counter() - started)
                tables.release(assignment)
    table = Table("claim", "median ms", "95 % below")
    for count, seconds in taken.items():
        table.add_row(f"{count} finished trials", _ms(statistics.median(seconds)), _ms(_p95(seconds)))
    console.print(table)
    return {
        "claim_p95_growth": round(_p95(taken[finished]) / _p95(taken[FEW]), 3),
        "claim_p95_ms": round(1e3 * _p95(taken[finished]), 2),
        "round_trip_ms": round(1e3 * round_trip, 3),
    }


# --- 2. Reports -------------------------------------------------------------------------------------------


def _reports(folder: Path, console: Console, *, finished: int) -> dict[str, float]:
    rng = random.Random(0)
    ours: list[float] = []
    theirs: list[float] = []
    with _databases(folder, folds=SUBJECTS, names=["ours", "optuna"]) as (tables, other):
        study = tables.create(trials=finished + RUNNING)
        write_trials(
            tables.engine,
            study,
            first=0,
            trials=finished,
            folds_done=SUBJECTS,
            folds=SUBJECTS,
            state="complete",
        )
        write_trials(
            tables.engine, study, first=finished, trials=RUNNING, folds_done=RUNNING_FOLDS, folds=SUBJECTS,
            state="running",
        )  # fmt: skip
        baseline = _optuna_study(other, finished=finished, rng=rng)
        running = [trial for trial in baseline.get_trials(deepcopy=False) if not trial.state.is_finished()]
        held = [tables.claim(f"{number}") for number in range(RUNNING)]
        # One report of each trial, as they arrive from many workers.
        for assignment, twin in zip(held, running, strict=True):
            started = time.perf_counter()
            tables.report(assignment, rng)
            ours.append(time.perf_counter() - started)

            trial = optuna.trial.Trial(baseline, twin._trial_id)
            started = time.perf_counter()
            trial.report(rng.random(), RUNNING_FOLDS + 1)
            trial.should_prune()
            theirs.append(time.perf_counter() - started)
    table = Table("64 running trials of 60 values", "median ms", "95 % below")
    table.add_row("report, decide, next fold", _ms(statistics.median(ours)), _ms(_p95(ours)))
    table.add_row("Optuna: report, should_prune", _ms(statistics.median(theirs)), _ms(_p95(theirs)))
    console.print(table)
    return {
        "report_vs_optuna": round(statistics.median(ours) / statistics.median(theirs), 4),
        "report_ms": round(1e3 * statistics.median(ours), 2),
        "optuna_report_ms": round(1e3 * statistics.median(theirs), 2),
    }


def _optuna_study(tables: Tables, *, finished: int, rng: random.Random) -> optuna.Study:
    study = optuna.create_study(
        storage=optuna.storages.RDBStorage(tables.settings.database_url),
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=10),
    )
    space = distributions(StudySpec.model_validate(study_spec("bench")).space)
    sampler = optuna.samplers.RandomSampler(seed=0)
    draw = optuna.create_study(sampler=sampler)
    states = chain(
        [(optuna.trial.TrialState.COMPLETE, SUBJECTS)] * finished,
        [(optuna.trial.TrialState.RUNNING, RUNNING_FOLDS)] * RUNNING,
    )
    for state, values in states:
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params=draw.ask(space).params,
                distributions=space,
                value=rng.random() if state.is_finished() else None,
                intermediate_values={step: rng.random() for step in range(1, values + 1)},
            )
        )
    return study


# --- 3. Over HTTP -----------------------------------------------------------------------------------------


def _over_http(
    folder: Path, console: Console, *, workers: int, many: int, reports: int, coordinators: int
) -> dict[str, float | int]:
    state = StateFolder(folder)
    write_cache(state.caches, subjects=SUBJECTS)
    with (
        local_service(state, workers=0, port=0, notify=lambda _: None, lease_seconds=LEASE_SECONDS) as service,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere,
    ):
        service.client.create(
            StudySpec.model_validate(study_spec("load", trials=100_000, pruning=[], workers_per_trial=8))
        )
        load = partial(simulate, token=service.service.worker_token, study="load")
        alone = partial(load, urls=[service.service.url])
        calm = elsewhere.submit(alone, workers=24, seconds=30, fold_seconds=1.0).result()
        crowd = elsewhere.submit(alone, workers=many, seconds=90, fold_seconds=20.0).result()
        one = elsewhere.submit(alone, workers=workers, seconds=60, fold_seconds=0.0).result()
        parts: list[Load] = []
        with _more_coordinators(state, service, coordinators - 1) as others:
            watch = _Watch(service)
            urls = [service.service.url, *others]
            for share in (0.1, 0.9):
                busy = elsewhere.submit(
                    load,
                    urls=urls,
                    workers=workers,
                    seconds=3600,
                    fold_seconds=0.0,
                    reports=int(share * reports),
                )
                parts.append(busy.result())
                watch.mark()
            watch.stop()
    rate = parts[1].reports / parts[1].seconds
    errors = [error for seen in (calm, crowd, one, *parts) for error in seen.errors]
    table = Table("over HTTP", "")
    table.add_row(f"reports per second, {coordinators} coordinators", f"{rate:.0f}")
    table.add_row("reports per second, one coordinator", f"{one.reports / one.seconds:.0f}")
    table.add_row("24 workers' wait between two folds, median", f"{_ms(statistics.median(calm.gaps))} ms")
    table.add_row("95 % below", f"{_ms(_p95(calm.gaps))} ms")
    table.add_row(f"{many} workers with folds of 20 s, share of time between folds", f"{_idle(crowd):.1%}")
    table.add_row("connections", str(watch.connections))
    table.add_row("memory, MB", ", ".join(f"{rss / 1e6:.0f}" for rss in watch.memory))
    table.add_row("errors", "; ".join(errors[:3]) or "none")
    console.print(table)
    return {
        "reports_per_s": round(rate, 1),
        "reports_per_s_of_one": round(one.reports / one.seconds, 1),
        "coordinators": coordinators,
        "reports": sum(part.reports for part in parts),
        "workers": workers,
        "connections": watch.connections,
        "rss_growth": round(watch.memory[-1] / watch.memory[0] - 1, 3),
        "idle_gap_p95_s": round(_p95(calm.gaps), 4),
        "many": many,
        "idle_share": round(_idle(crowd), 4),
        "errors": len(errors),
    }


@contextmanager
def _more_coordinators(state: StateFolder, service: LocalService, count: int) -> Iterator[list[str]]:
    """So many more coordinators on the same database, each on a port of its own; whoever asks early waits."""
    environment = {
        **os.environ,
        "FOLDWISE_DATABASE_URL": service.service.database_url,
        "FOLDWISE_ADMIN_TOKEN": service.service.admin_token,
        "FOLDWISE_WORKER_TOKEN": service.service.worker_token,
    }
    with ExitStack() as stack:
        urls = []
        for _ in range(count):
            listener = stack.enter_context(bind("127.0.0.1", 0))
            options = {
                "--fd": listener.fileno(),
                "--cache-root": state.caches,
                "--lease-seconds": LEASE_SECONDS,
            }
            process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "cli.main", "coordinator", *map(str, chain(*options.items()))],
                env=environment,
                stdout=subprocess.DEVNULL,
                pass_fds=(listener.fileno(),),
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            urls.append(f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield urls


def _idle(load: Load) -> float:
    """Share of the workers' time between folds, but before their first."""
    later = sum(load.later_gaps)
    return later / (later + load.folding)


class _Watch:
    """Looks at the database's connections now and then, and at the coordinators' memory when told."""

    def __init__(self, service: LocalService) -> None:
        self.connections = 0
        self.memory: list[int] = []
        self._coordinators = [
            child for child in psutil.Process().children() if "coordinator" in child.cmdline()
        ]
        self._engine = create_engine(service.service.database_url)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def mark(self) -> None:
        """Note the memory of now."""
        self.memory.append(sum(coordinator.memory_info().rss for coordinator in self._coordinators))

    def stop(self) -> None:
        """End the counting."""
        self._done.set()
        self._thread.join()
        self._engine.dispose()

    def _count(self) -> None:
        others = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not self._done.wait(0.2):
                self.connections = max(self.connections, connection.scalar(text(others)) or 0)


# --- Parts ------------------------------------------------------------------------------------------------


@contextmanager
def _databases(folder: Path, *, folds: int, names: list[str]) -> Iterator[list[Tables]]:
    write_cache(folder / "caches", subjects=folds)
    with embedded_postgres(folder / "postgres") as url:
        made: list[Tables] = []
        server = create_engine(url, isolation_level="AUTOCOMMIT")
        for name in names:
            with server.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {name}"))
            database_url = make_url(url).set(database=name).render_as_string(hide_password=False)
            engine = connect(database_url)
            migrate(engine)
            settings = CoordinatorSettings(
                database_url=database_url,
                cache_root=folder / "caches",
                admin_token="a" * 20,
                worker_token="w" * 20,
                lease_seconds=3600,
            )
            made.append(Tables(engine, settings))
        try:
            yield made
        finally:
            for tables in made:
                tables.engine.dispose()
            server.dispose()


def _round_trip(engine: Engine) -> float:
    seconds = []
    with engine.connect() as connection:
        for _ in range(1000):
            started = time.perf_counter()
            connection.execute(text("SELECT 1"))
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _key(assignment: FoldAssignment) -> LeaseKey:
    lease = assignment.lease
    return LeaseKey(id=lease.id, term=lease.term, secret=lease.secret)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _p95(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.95 * (len(seconds) - 1))]


if __name__ == "__main__":
    main()
