"""How fast the coordinator is as studies grow, compared with Optuna on the same PostgreSQL.

    python -m benchmarks.coordinator [--finished 10000] [--reports 100000] [--workers 200] [--coordinators 2]

Nothing is trained; results are random. The measurements alternate, so that a change of the machine's speed
affects both sides:

1. Claims: `scheduling.claim` and `release`, as transactions, with 100 finished trials and with `--finished`.
2. Reports: `scheduling.report` (check, store, decide by median, lease the next fold, commit) compared with
   Optuna's `trial.report` and `should_prune` with its MedianPruner. Both run in this process, with 64 running
   trials of 60 values each and the same number of finished ones, in a Leave-One-Subject-Out study of 118 folds.
3. Over HTTP, with a coordinator process and simulated workers, at most eight per trial:
   - 24 workers with folds of one second, for the time that a worker waits between two folds;
   - `--many` workers with folds of twenty seconds, for the share of their time that they wait;
   - `--workers` workers without any training, for the reports per second that one coordinator handles;
   - the same with `--coordinators` processes, until they have `--reports` reports.

The last line is JSON:
    claim_p95_growth   95th percentile of a claim with many finished trials, divided by that with 100
    report_vs_optuna   median of our report and decision, divided by the median of Optuna's two calls
    report_ms, optuna_report_ms, claim_p95_ms
    reports_per_s      over HTTP, with all workers and all coordinators together
    reports_per_s_of_one   the same with one coordinator
    coordinators, reports, workers
    connections        maximum number of connections to PostgreSQL meanwhile
    rss_growth         growth of the coordinators' memory from 10 % of the reports to the end
    idle_gap_p95_s     95th percentile of a worker's wait between two folds
    many, idle_share   number of workers with folds of 20 s, and the share of their time between folds
    errors             number of answers other than success
    round_trip_ms      median of `SELECT 1` from this process, which shows how busy the machine was
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import optuna
import structlog
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.orm import sessionmaker

from benchmarks.bench_study import FINGERPRINT, study_spec, write_cache, write_trials
from benchmarks.coordinator_processes import ResourceMonitor, more_coordinators
from benchmarks.simulated_workers import Load, simulate
from cli.local.embedded_postgres import embedded_postgres
from cli.local.service import local_service
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
"""Number of running trials, and of finished folds in each."""

LEASE_SECONDS = 90
"""As in a cluster. Simulated workers send no heartbeats, so shorter leases would expire before a fold ends."""

SHORT_HISTORY = 100
"""Number of finished trials with which the long history is compared."""


@dataclass(frozen=True)
class InProcessCoordinator:
    """The coordinator's functions on one database, called without HTTP; every method is one transaction."""

    engine: Engine
    settings: CoordinatorSettings

    def create(self, **spec: object) -> int:
        """Create a study and return its id."""
        with sessionmaker(self.engine).begin() as session:
            given = StudySpec.model_validate(study_spec("bench", **spec))
            return life.create(session, given, self.settings.cache_root).id

    def claim(self, worker: str) -> FoldAssignment:
        """Claim a fold."""
        info = WorkerInfo(id=f"worker-{worker}", name=worker, device="none")
        request = ClaimRequest(worker=info, caches=(FINGERPRINT,), wait_seconds=0)
        with sessionmaker(self.engine).begin() as session:
            assignment = claims.claim(session, request, str(uuid.uuid4()), self.settings, threads=1)
        if assignment is None:
            raise RuntimeError("there is no fold to claim")
        return assignment

    def release(self, assignment: FoldAssignment) -> None:
        """Release a lease."""
        with sessionmaker(self.engine).begin() as session:
            leases.release(session, _key(assignment))

    def report(self, assignment: FoldAssignment, rng: random.Random) -> FoldAssignment | None:
        """Report a random result and return the next lease."""
        result = random_result(assignment, rng)
        with sessionmaker(self.engine, expire_on_commit=False).begin() as session:
            return reports.report(session, _key(assignment), result, self.settings).next


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--finished", type=int, default=10_000, help="finished trials of the long history")
    parser.add_argument("--claims", type=int, default=400, help="claims to time per history")
    parser.add_argument(
        "--finished-loso", type=int, default=64, help="finished trials besides the running ones"
    )
    parser.add_argument("--workers", type=int, default=200, help="workers that do not train")
    parser.add_argument("--many", type=int, default=500, help="workers with folds of 20 s")
    parser.add_argument("--reports", type=int, default=100_000, help="reports over HTTP")
    parser.add_argument("--coordinators", type=int, default=2, help="coordinator processes")
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
    seconds: dict[int, list[float]] = {SHORT_HISTORY: [], finished: []}
    with _databases(folder, folds=10, names=["few", "many"]) as (few, many):
        for database, count in ((few, SHORT_HISTORY), (many, finished)):
            study = database.create(protocol={"kind": "kfold", "k": 10}, trials=count + 4)
            write_trials(
                database.engine, study, first=0, trials=count, folds_done=10, folds=10, state="complete"
            )
            write_trials(database.engine, study, first=count, trials=4, folds_done=0, folds=10, state="ready")
        round_trip = _round_trip(few.engine)
        for _ in range(claims):
            for database, count in ((few, SHORT_HISTORY), (many, finished)):
                started = time.perf_counter()
                assignment = database.claim("one")
                seconds[count].append(time.perf_counter() - started)
                database.release(assignment)
    table = Table("claim", "median ms", "95th percentile")
    for count, measured in seconds.items():
        table.add_row(f"{count} finished trials", _ms(statistics.median(measured)), _ms(_p95(measured)))
    console.print(table)
    return {
        "claim_p95_growth": round(_p95(seconds[finished]) / _p95(seconds[SHORT_HISTORY]), 3),
        "claim_p95_ms": round(1e3 * _p95(seconds[finished]), 2),
        "round_trip_ms": round(1e3 * round_trip, 3),
    }


# --- 2. Reports -------------------------------------------------------------------------------------------


def _reports(folder: Path, console: Console, *, finished: int) -> dict[str, float]:
    rng = random.Random(0)
    ours: list[float] = []
    theirs: list[float] = []
    with _databases(folder, folds=SUBJECTS, names=["ours", "optuna"]) as (database, optuna_database):
        study = database.create(trials=finished + RUNNING)
        write_trials(
            database.engine,
            study,
            first=0,
            trials=finished,
            folds_done=SUBJECTS,
            folds=SUBJECTS,
            state="complete",
        )
        write_trials(
            database.engine, study, first=finished, trials=RUNNING, folds_done=RUNNING_FOLDS, folds=SUBJECTS,
            state="running",
        )  # fmt: skip
        baseline = _optuna_study(optuna_database, finished=finished, rng=rng)
        running = [trial for trial in baseline.get_trials(deepcopy=False) if not trial.state.is_finished()]
        leased = [database.claim(f"{number}") for number in range(RUNNING)]
        # One report per trial, as if from many workers.
        for assignment, frozen in zip(leased, running, strict=True):
            started = time.perf_counter()
            database.report(assignment, rng)
            ours.append(time.perf_counter() - started)

            trial = optuna.trial.Trial(baseline, frozen._trial_id)
            started = time.perf_counter()
            trial.report(rng.random(), RUNNING_FOLDS + 1)
            trial.should_prune()
            theirs.append(time.perf_counter() - started)
    table = Table("64 running trials of 60 values", "median ms", "95th percentile")
    table.add_row(
        "foldwise: report, decide, lease the next fold", _ms(statistics.median(ours)), _ms(_p95(ours))
    )
    table.add_row("Optuna: report, should_prune", _ms(statistics.median(theirs)), _ms(_p95(theirs)))
    console.print(table)
    return {
        "report_vs_optuna": round(statistics.median(ours) / statistics.median(theirs), 4),
        "report_ms": round(1e3 * statistics.median(ours), 2),
        "optuna_report_ms": round(1e3 * statistics.median(theirs), 2),
    }


def _optuna_study(database: InProcessCoordinator, *, finished: int, rng: random.Random) -> optuna.Study:
    study = optuna.create_study(
        storage=optuna.storages.RDBStorage(database.settings.database_url),
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
        local_service(state, devices=(), port=0, notify=lambda _: None, lease_seconds=LEASE_SECONDS) as service,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        service.client.create(
            StudySpec.model_validate(study_spec("load", trials=100_000, pruning=[], workers_per_trial=8))
        )
        load = partial(simulate, token=service.service.worker_token, study="load")
        one_url = partial(load, urls=[service.service.url])
        short_folds = pool.submit(one_url, workers=24, seconds=30, fold_seconds=1.0).result()
        long_folds = pool.submit(one_url, workers=many, seconds=90, fold_seconds=20.0).result()
        one_coordinator = pool.submit(one_url, workers=workers, seconds=60, fold_seconds=0.0).result()
        parts: list[Load] = []
        with more_coordinators(state, service, coordinators - 1, lease_seconds=LEASE_SECONDS) as other_urls:
            monitor = ResourceMonitor(service)
            urls = [service.service.url, *other_urls]
            for share in (0.1, 0.9):
                future = pool.submit(
                    load,
                    urls=urls,
                    workers=workers,
                    seconds=3600,
                    fold_seconds=0.0,
                    reports=int(share * reports),
                )
                parts.append(future.result())
                monitor.record_memory()
            monitor.stop()
    rate = parts[1].reports / parts[1].seconds
    errors = [error for part in (short_folds, long_folds, one_coordinator, *parts) for error in part.errors]
    table = Table("over HTTP", "")
    table.add_row(f"reports per second, {coordinators} coordinators", f"{rate:.0f}")
    table.add_row(
        "reports per second, one coordinator", f"{one_coordinator.reports / one_coordinator.seconds:.0f}"
    )
    waits = short_folds.gaps
    table.add_row("wait between two folds, 24 workers, median", f"{_ms(statistics.median(waits))} ms")
    table.add_row("the same, 95th percentile", f"{_ms(_p95(waits))} ms")
    idle = f"{_idle_share(long_folds):.1%}"
    table.add_row(f"share of time between folds, {many} workers with folds of 20 s", idle)
    table.add_row("connections to PostgreSQL, maximum", str(monitor.connections))
    table.add_row(
        "memory in MB, after 10 % and all reports", ", ".join(f"{rss / 1e6:.0f}" for rss in monitor.memory)
    )
    table.add_row("errors", "; ".join(errors[:3]) or "none")
    console.print(table)
    return {
        "reports_per_s": round(rate, 1),
        "reports_per_s_of_one": round(one_coordinator.reports / one_coordinator.seconds, 1),
        "coordinators": coordinators,
        "reports": sum(part.reports for part in parts),
        "workers": workers,
        "connections": monitor.connections,
        "rss_growth": round(monitor.memory[-1] / monitor.memory[0] - 1, 3),
        "idle_gap_p95_s": round(_p95(waits), 4),
        "many": many,
        "idle_share": round(_idle_share(long_folds), 4),
        "errors": len(errors),
    }


def _idle_share(load: Load) -> float:
    """Share of the workers' time between two folds, not counting the wait before their first fold."""
    waiting = sum(load.later_gaps)
    return waiting / (waiting + load.training)


# --- Parts ------------------------------------------------------------------------------------------------


@contextmanager
def _databases(folder: Path, *, folds: int, names: list[str]) -> Iterator[list[InProcessCoordinator]]:
    write_cache(folder / "caches", subjects=folds)
    with embedded_postgres(folder / "postgres") as postgres:
        url = postgres.url
        databases: list[InProcessCoordinator] = []
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
            databases.append(InProcessCoordinator(engine, settings))
        try:
            yield databases
        finally:
            for database in databases:
                database.engine.dispose()
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
