"""What is done to the processes of a seed until its study is over."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import psutil
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from client.connection import Connection
from client.study_client import StudyClient
from services.contracts import StudyState
from services.errors import FoldwiseError
from tests.chaos.arena import ADMIN, LEASE_SECONDS, Arena
from tests.harness import lost_machine
from tests.harness.frozen_postgres import frozen

DATABASE_CRASHES = 3
PATIENCE = 600.0
FROZEN = (5.0, 15.0)
"""Seconds for which PostgreSQL is stopped."""

CUT = (20.0, 30.0)
"""Seconds for which a machine is cut off, longer than a leader's term."""


@dataclass
class Harm:
    """How often each fault was made."""

    kills: int = 0
    stops: int = 0
    database_crashes: int = 0
    freezes: int = 0
    cuts: int = 0
    imports: int = 0


def storm(arena: Arena, rng: random.Random, exported: bytes) -> Harm:
    """Do harm until the study is over; `exported` is a study that is imported beside it."""
    harm = Harm()
    engine = create_engine(arena.database_url, pool_pre_ping=True)
    began = time.monotonic()
    stopped: dict[str, float] = {}
    importing = threading.Thread(target=_import, args=(arena, exported, harm, rng.uniform(5, 15)))
    importing.start()
    plan: list[tuple[float, Callable[[], None]]] = [
        (rng.uniform(5, 10) * number, lambda: _crash(arena, harm)) for number in range(1, DATABASE_CRASHES + 1)
    ]
    plan.append((rng.uniform(8, 20), lambda: _freeze(arena, harm, rng.uniform(*FROZEN))))
    if arena.two_machines:
        plan.append((rng.uniform(8, 25), lambda: _cut(arena, harm, rng.uniform(*CUT))))
    plan.sort(key=lambda planned: planned[0])
    while not _is_over(engine):
        if time.monotonic() - began > PATIENCE:
            raise SystemExit(f"{arena.study} did not end in {PATIENCE:.0f} s; see {arena.folder}")
        _let_work(arena, rng.randint(4, 16))
        for name in [name for name, until in stopped.items() if time.monotonic() > until]:
            del stopped[name]
            arena.processes[name].send_signal(signal.SIGCONT)
        arena.tend()
        if plan and time.monotonic() - began > plan[0][0]:
            plan.pop(0)[1]()
        kind = "coordinator" if rng.random() < 0.1 else "worker"
        victims = [
            name
            for name, process in arena.processes.items()
            if process.poll() is None and name not in stopped and name.startswith(kind)
        ]
        if not victims:
            continue
        victim = rng.choice(victims)
        if rng.random() < 0.2:
            arena.processes[victim].send_signal(signal.SIGSTOP)
            stopped[victim] = time.monotonic() + LEASE_SECONDS * rng.uniform(0.5, 2)
            harm.stops += 1
        else:
            arena.processes[victim].kill()
            harm.kills += 1
    importing.join()
    engine.dispose()
    return harm


def settle(arena: Arena) -> None:
    """Let what lives end its work: the last projections, the workers that do not know of the end."""
    if arena.two_machines:
        lost_machine.connect()
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
        raise SystemExit(f"{arena.study} is not quiet after 120 s; see {arena.folder}")
    engine.dispose()


def _let_work(arena: Arena, folds: int) -> None:
    """Wait until this many more folds are done, a few seconds at most: without work a storm proves nothing."""
    enough, deadline = len(arena.recorded("acknowledged")) + folds, time.monotonic() + LEASE_SECONDS
    while len(arena.recorded("acknowledged")) < enough and time.monotonic() < deadline:
        time.sleep(0.05)


def _is_over(engine: Engine) -> bool:
    try:
        with engine.connect() as connection:
            query = text("SELECT state FROM foldwise.studies WHERE name LIKE 'chaos-%'")
            return StudyState(connection.scalar(query)).over
    except OperationalError:
        return False


def _crash(arena: Arena, harm: Harm) -> None:
    os.kill(arena.postgres.pid, signal.SIGQUIT)
    psutil.Process(arena.postgres.pid).wait(30)
    arena.postgres.start()
    harm.database_crashes += 1


def _freeze(arena: Arena, harm: Harm, seconds: float) -> None:
    with frozen(arena.postgres):
        time.sleep(seconds)
    harm.freezes += 1


def _cut(arena: Arena, harm: Harm, seconds: float) -> None:
    """Cut the other machine off; the storm goes on, and a timer connects it again."""
    lost_machine.cut()
    timer = threading.Timer(seconds, lost_machine.connect)
    timer.daemon = True
    timer.start()
    harm.cuts += 1


def _import(arena: Arena, exported: bytes, harm: Harm, after: float) -> None:
    time.sleep(after)
    with Connection(arena.url(0), ADMIN, give_up_after=60) as connection:
        client = StudyClient(connection)
        for _ in range(20):
            try:
                client.import_study(BytesIO(exported), "imported")
            except FoldwiseError:
                # The coordinator or the database died over it: nothing is there, or all of it.
                if any(study.name == "imported" for study in client.studies()):
                    break
            else:
                break
        harm.imports += any(study.name == "imported" for study in client.studies())
