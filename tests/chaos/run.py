"""Kill everything, many times, and count what is lost.

    python -m tests.chaos.run [--seeds 20] [--first-seed 0]

For each seed: PostgreSQL, two coordinators on it, 24 simulated workers, one Leave-One-Subject-Out study with
`bound` pruning. Until the study is over, workers and coordinators are killed (SIGKILL), workers are stopped for
about as long as a lease (SIGSTOP), PostgreSQL is brought down as by a power cut (SIGQUIT, `immediate`), results
come twice or late. What dies is started again. Then the tables are compared with what the workers were told,
with what every trial must come to without faults, and with Optuna's.

Prints a table, and one last line of JSON with the sums: `kills`, `stops`, `database_crashes`, `folds`, `lost`,
`doubled`, `wrong_trials`, `optuna_mismatches`, `over_budget`, `seeds`. The exit code is 0 if the figures from
`lost` to `over_budget` are zero.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, create_engine, make_url, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from cli.local.embedded_postgres import PostgresServer, embedded_postgres
from client.connection import Connection
from client.study_client import StudyClient
from coordinator.store import trial_results, views
from coordinator.store.tables import ResultRow, StudyRow, TrialRow
from services.contracts import BoundRule, StudySpec, StudyState, TrialState
from services.folds import LeaveOneSubjectOut
from tests.harness.optuna_projection import load_projected
from tests.harness.simulated_results import seeded_predictions
from tests.harness.tiny_cache import write_tiny_cache

COORDINATORS, WORKERS = 2, 24
TRIALS, SUBJECTS = 40, 20
LEASE_SECONDS = 3.0
BOUND = 0.6
DATABASE_CRASHES = 3
PATIENCE = 600.0
ADMIN, WORKER = "admin-token-of-the-chaos-test", "worker-token-of-the-chaos-test"


@dataclass
class Outcome:
    """What was done to a study, and what became of it."""

    seed: int
    kills: int = 0
    stops: int = 0
    database_crashes: int = 0
    folds: int = 0
    seconds: float = 0.0
    lost: int = 0
    doubled: int = 0
    wrong_trials: int = 0
    optuna_mismatches: int = 0
    over_budget: int = 0

    @property
    def violations(self) -> int:
        """Zero, or there is a bug."""
        return self.lost + self.doubled + self.wrong_trials + self.optuna_mismatches + self.over_budget


@dataclass
class Arena:
    """The processes of one seed."""

    folder: Path
    database_url: str
    study: str
    ports: list[int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Start `coordinator-N` or `worker-N`."""
        kind, number = name.split("-")
        environment = {**os.environ, "FOLDWISE_TOKEN": WORKER, "PYTHONUNBUFFERED": "1"}
        if kind == "coordinator":
            port = str(self.ports[int(number)])
            environment |= {
                "FOLDWISE_DATABASE_URL": self.database_url,
                "FOLDWISE_ADMIN_TOKEN": ADMIN,
                "FOLDWISE_WORKER_TOKEN": WORKER,
            }
            command = ["cli.main", "coordinator", "--port", port, "--cache-root", str(self.folder / "caches")]
            command += ["--lease-seconds", str(LEASE_SECONDS)]
        else:
            url = self.url(int(number) % COORDINATORS)
            command = ["tests.chaos.faulty_worker", url, self.study, name, str(self.acknowledged)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command], env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def url(self, coordinator: int) -> str:
        """Address of a coordinator."""
        return f"http://127.0.0.1:{self.ports[coordinator]}"

    @property
    def acknowledged(self) -> Path:
        """What the workers were told is counted."""
        return self.folder / "acknowledged"

    def tend(self) -> None:
        """Start again what died; a worker that ended by itself has seen the study's end."""
        for name, process in list(self.processes.items()):
            if process.poll() not in {None, 0}:
                self.start(name)

    def end(self) -> None:
        """End all that still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


def main() -> None:
    """Run all seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console()
    outcomes = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        outcomes.append(_run(seed))
        console.print(outcomes[-1], highlight=False)
    columns = [name for name in asdict(outcomes[0]) if name != "seed"]
    table = Table("seed", *columns)
    for outcome in outcomes:
        table.add_row(
            str(outcome.seed), *(f"{value:.0f}" for name, value in asdict(outcome).items() if name != "seed")
        )
    console.print(table)
    sums = {name: round(sum(getattr(outcome, name) for outcome in outcomes)) for name in columns}
    print(json.dumps({**sums, "seeds": len(outcomes)}))
    sys.exit(1 if any(outcome.violations for outcome in outcomes) else 0)


def _run(seed: int) -> Outcome:
    rng = random.Random(seed)
    outcome = Outcome(seed=seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        write_tiny_cache(folder / "caches", subjects=SUBJECTS)
        with embedded_postgres(folder / "postgres") as postgres, _arena(folder, postgres, seed) as arena:
            client = StudyClient(Connection(arena.url(0), ADMIN, give_up_after=60))
            client.create(
                StudySpec(
                    name=arena.study,
                    cache="tiny",
                    protocol=LeaveOneSubjectOut(),
                    trials=TRIALS,
                    seed=seed,
                    pruning=(BoundRule(threshold=BOUND),),
                    training={"frames": 2, "frame_size": 16},
                    workers_per_trial=2,
                )
            )
            for number in range(WORKERS):
                arena.start(f"worker-{number}")
            _storm(arena, postgres, rng, outcome)
            _settle(arena)
            _check(arena, outcome)
    outcome.seconds = time.monotonic() - started
    return outcome


@contextmanager
def _arena(folder: Path, postgres: PostgresServer, seed: int) -> Iterator[Arena]:
    server = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("CREATE DATABASE chaos"))
    server.dispose()
    database_url = make_url(postgres.url).set(database="chaos").render_as_string(hide_password=False)
    arena = Arena(folder, database_url, f"chaos-{seed}", [_free_port() for _ in range(COORDINATORS)])
    try:
        for number in range(COORDINATORS):
            arena.start(f"coordinator-{number}")
        yield arena
    finally:
        arena.end()


def _storm(arena: Arena, postgres: PostgresServer, rng: random.Random, outcome: Outcome) -> None:
    """Do harm until the study is over."""
    engine = create_engine(arena.database_url, pool_pre_ping=True)
    deadline = time.monotonic() + PATIENCE
    stopped: dict[str, float] = {}
    next_crash = time.monotonic() + rng.uniform(5, 10)
    while time.monotonic() < deadline:
        _let_work(arena, rng.randint(4, 16))
        for name in [name for name, until in stopped.items() if time.monotonic() > until]:
            del stopped[name]
            arena.processes[name].send_signal(signal.SIGCONT)
        arena.tend()
        if outcome.database_crashes < DATABASE_CRASHES and time.monotonic() > next_crash:
            _crash(postgres)
            outcome.database_crashes += 1
            next_crash = time.monotonic() + rng.uniform(5, 10)
        victims = [
            name for name, process in arena.processes.items() if process.poll() is None and name not in stopped
        ]
        kind = "coordinator" if rng.random() < 0.1 else "worker"
        victims = [name for name in victims if name.startswith(kind)]
        if not victims:
            return
        victim = rng.choice(victims)
        if kind == "worker" and rng.random() < 0.2:
            arena.processes[victim].send_signal(signal.SIGSTOP)
            stopped[victim] = time.monotonic() + LEASE_SECONDS * rng.uniform(0.5, 2)
            outcome.stops += 1
        else:
            arena.processes[victim].kill()
            outcome.kills += 1
        if _is_over(engine):
            return
    raise SystemExit(f"{arena.study} did not come to its end in {PATIENCE:.0f} s; see {arena.folder}")


def _let_work(arena: Arena, folds: int) -> None:
    """Wait for so many more folds, a few seconds at most: a storm in which nobody works proves nothing."""

    def done() -> int:
        return arena.acknowledged.read_bytes().count(b"\n") if arena.acknowledged.exists() else 0

    enough, deadline = done() + folds, time.monotonic() + LEASE_SECONDS
    while done() < enough and time.monotonic() < deadline:
        time.sleep(0.05)


def _is_over(engine: Engine) -> bool:
    try:
        with engine.connect() as connection:
            return StudyState(connection.scalar(text("SELECT state FROM foldwise.studies"))).over
    except OperationalError:
        return False


def _settle(arena: Arena) -> None:
    """Let what lives end its work: the last projections, the workers that have not heard of the end."""
    for process in arena.processes.values():
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
    engine = create_engine(arena.database_url)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        arena.tend()
        with engine.connect() as connection:
            waiting = connection.scalar(text("SELECT count(*) FROM foldwise.outbox"))
        workers = [process for name, process in arena.processes.items() if name.startswith("worker")]
        if not waiting and all(process.poll() == 0 for process in workers):
            break
        time.sleep(0.2)
    else:
        raise SystemExit(f"{arena.study} is not quiet after 120 s")
    engine.dispose()


def _crash(postgres: PostgresServer) -> None:
    os.kill(postgres.pid, signal.SIGQUIT)
    psutil.Process(postgres.pid).wait(30)
    postgres.start()


def _check(arena: Arena, outcome: Outcome) -> None:
    engine = create_engine(arena.database_url)
    with Session(engine) as session:
        study = session.query(StudyRow).one()
        assert study.state == StudyState.COMPLETE, study.reason
        counted = session.execute(
            text(
                "SELECT number, fold, lease_id FROM foldwise.results"
                " JOIN foldwise.trials ON trials.id = trial_id WHERE lease_id IS NOT NULL"
            )
        ).all()
        stored = {(number, fold): lease for number, fold, lease in counted}
        outcome.folds = len(counted)
        outcome.doubled = len(counted) - len(stored)
        for line in arena.acknowledged.read_text().splitlines():
            number, fold, lease = line.split()
            outcome.lost += stored.get((int(number), int(fold))) != lease
        trials = views.list_trials(session, study, state=None, after=-1, limit=1000)
        outcome.over_budget = max(0, len(trials) - TRIALS)
        projected_trials = load_projected(arena.database_url, arena.study).trials
        outcome.optuna_mismatches = abs(len(projected_trials) - len(trials))
        for trial, projected in zip(trials, projected_trials, strict=False):
            row = views.get_trial(session, study, trial.number)
            records = [
                views.fold_record(session, study, row, fold.index)
                for fold in trial_results.fold_views(session, study, row)
                if fold.state == "done"
            ]
            right = {record.task.fold: record.correct for record in records}
            must = all(
                list(record.result.epochs[0].predicted) == seeded_predictions(record.task) for record in records
            )
            wrong = sum(len(record.task.test_clips) - record.correct for record in records)
            clips = 2 * SUBJECTS
            reachable = (clips - wrong) / clips
            if trial.state == TrialState.COMPLETE:
                must &= len(right) == SUBJECTS and trial.value == sum(right.values()) / clips
                # With its last fold a trial is complete, whatever that fold came to; until then no rule fired.
                before_last = reachable + (2 - right[_last_counted(session, row)]) / clips
                must &= before_last >= BOUND
            elif trial.state == TrialState.PRUNED:
                must &= reachable < BOUND
            else:
                # Three workers killed at one fold fail it: that is the rule, and it must be what is said.
                must &= trial.state == TrialState.FAILED and "expired" in (trial.end_reason or "")
            if not must:
                outcome.wrong_trials += 1
                print(f"wrong: {trial}, {len(records)} folds with {wrong} wrong clips")
            state = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[trial.state]
            equal = (projected.number, projected.params, projected.state.name) == (
                trial.number,
                trial.parameters,
                state,
            )
            # Optuna gives a pruned trial its last intermediate value.
            equal &= projected.value == trial.value or trial.state != TrialState.COMPLETE
            prefix = [right[step] for step in range(len(right)) if all(i in right for i in range(step + 1))]
            curve = {step: sum(prefix[:step]) / (2 * step) for step in range(1, len(prefix) + 1)}
            outcome.optuna_mismatches += not (equal and projected.intermediate_values == curve)
    engine.dispose()


def _last_counted(session: Session, trial: TrialRow) -> int:
    last = select(ResultRow.fold).where(ResultRow.trial_id == trial.id).order_by(ResultRow.received_at.desc())
    return session.scalars(last.limit(1)).one()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
