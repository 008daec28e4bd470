"""Everything on one machine: PostgreSQL, a coordinator and workers, each a process of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cli.local.embedded_postgres import embedded_postgres
from cli.local.ports import bind
from cli.local.state import StateFolder
from client.connection import Connection
from client.local_service import Service
from client.study_client import StudyClient
from services.errors import EXIT_PERMANENT, EXIT_TRY_AGAIN, EXIT_USAGE, FoldwiseError

RESTART_SECONDS = 2.0
"""A worker that died is not started again sooner, so that a broken one does not spin."""

QUICK_SECONDS = 20.0
QUICK_DEATHS_ALLOWED = 10
"""So many workers in a row that lived less than `QUICK_SECONDS` end the service: restarting does not help."""

LOCAL_LEASE_SECONDS = 15.0
"""On one machine there is no network to wait for: a dead worker's fold is free again after so long."""

START_SECONDS = 60.0


@dataclass
class LocalService:
    """A running service; its processes are watched by whoever calls `tend`."""

    state: StateFolder
    service: Service
    say: Callable[[str], None]
    study: str | None
    threads: int | None
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _started: dict[str, float] = field(default_factory=dict)
    _quick_deaths: int = 0

    @cached_property
    def client(self) -> StudyClient:
        """A client with the admin token."""
        return StudyClient(Connection(self.service.url, self.service.admin_token, give_up_after=30))

    def start_worker(self, name: str) -> None:
        """Start a worker process."""
        command = ["worker", "--name", name, *_folders(self.state)]
        if self.study is not None:
            command += ["--study", self.study]
        if self.threads is not None:
            command += ["--threads", str(self.threads)]
        environment = {"FOLDWISE_URL": self.service.url, "FOLDWISE_TOKEN": self.service.worker_token}
        self.workers[name] = _spawn(command, environment, self.state.logs / f"{name}.log")
        self._started[name] = time.monotonic()

    def tend(self) -> None:
        """Start workers that died again; one that is done, or that can never work, is left alone.

        Raises:
            FoldwiseError: every worker ended because it can never work.
        """
        for name, process in self.workers.items():
            code = process.poll()
            if code is None or code in (0, EXIT_USAGE, EXIT_PERMANENT):
                continue
            lived = time.monotonic() - self._started[name]
            if lived >= RESTART_SECONDS:
                self._quick_deaths = self._quick_deaths + 1 if lived < QUICK_SECONDS else 0
                if self._quick_deaths >= QUICK_DEATHS_ALLOWED:
                    raise FoldwiseError(f"workers end as soon as they start; see {self.state.logs}/{name}.log")
                self.say(f"{name} ended ({_why(code)}); it is started again")
                self.start_worker(name)
        codes = {process.poll() for process in self.workers.values()}
        if codes and codes <= {EXIT_USAGE, EXIT_PERMANENT}:
            raise FoldwiseError(f"no worker can work; see {self.state.logs}/worker-*.log")


@contextmanager
def local_service(
    state: StateFolder,
    *,
    workers: int,
    port: int,
    say: Callable[[str], None],
    study: str | None = None,
    threads: int | None = None,
    lease_seconds: float = LOCAL_LEASE_SECONDS,
) -> Iterator[LocalService]:
    """Run PostgreSQL, a coordinator and `workers` workers on a state folder while the context lasts.

    At its end workers give their folds back, then the coordinator and PostgreSQL stop; all state stays.

    Args:
        port: of the coordinator on 127.0.0.1; 0 takes a free one.
        say: told in a sentence what happens.
        study: the only study that workers serve; None for any.
        threads: CPU threads of each worker.
        lease_seconds: until a fold whose worker says nothing goes to another one.

    Raises:
        Conflict: a service runs on this folder already.
        InvalidInput: the port is occupied.
        FoldwiseError: PostgreSQL or the coordinator does not start.
    """
    with state.hold():
        listener = bind("127.0.0.1", port)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with listener, embedded_postgres(state.database) as database_url:
            state.logs.mkdir(exist_ok=True)
            admin, worker = state.tokens()
            service = Service(
                url=url, admin_token=admin, worker_token=worker, database_url=database_url, pid=os.getpid()
            )
            fd, lease = str(listener.fileno()), str(lease_seconds)
            coordinator = _spawn(
                ["coordinator", "--fd", fd, *_folders(state), "--lease-seconds", lease],
                {
                    "FOLDWISE_DATABASE_URL": database_url,
                    "FOLDWISE_ADMIN_TOKEN": admin,
                    "FOLDWISE_WORKER_TOKEN": worker,
                },
                state.logs / "coordinator.log",
                keep=(listener.fileno(),),
            )
            running = LocalService(state=state, service=service, say=say, study=study, threads=threads)
            try:
                _wait_ready(coordinator, service, state.logs / "coordinator.log")
                state.announce(service)
                say(f"coordinator ready at {url} (PostgreSQL in {state.database})")
                for number in range(1, workers + 1):
                    running.start_worker(f"worker-{number}")
                yield running
            finally:
                _end([*running.workers.values()])
                _end([coordinator])


def _folders(state: StateFolder) -> list[str]:
    return ["--cache-root", str(state.caches), "--models", str(state.models)]


def _spawn(
    command: list[str], environment: dict[str, str], log: Path, *, keep: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    # Secrets travel in the environment: arguments can be read by every user of the machine. What the user set
    # there for another coordinator is not for this one.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FOLDWISE_") or name in {"FOLDWISE_LOG", "FOLDWISE_REVISION"}
    }
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own program
            # -P: a `worker.py` or `services/` in the user's current folder must not replace ours.
            [sys.executable, "-P", "-m", "cli.main", *command],
            env={**kept, **environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=keep,
            # A session of its own: Ctrl-C reaches us alone, and we end the others in order.
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - no threads run at this point
        )


def _end_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _wait_ready(coordinator: subprocess.Popen[bytes], service: Service, log: Path) -> None:
    with Connection(service.url, service.admin_token, give_up_after=1.0) as connection:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if coordinator.poll() is not None:
                break
            try:
                connection.call("GET", "/workers")
            except FoldwiseError:
                continue
            return
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise FoldwiseError(
        f"the coordinator does not start: {lines[-1] if lines else 'it said nothing'}; see {log}"
    )


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _why(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "it gave up for now" if code == EXIT_TRY_AGAIN else f"exit code {code}"
