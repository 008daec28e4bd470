"""The service on one machine: PostgreSQL, a coordinator and workers, each in its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cli.local.child_processes import foldwise_command, stop_with_parent
from cli.local.embedded_postgres import embedded_postgres
from cli.local.ports import bind
from cli.local.state import StateFolder
from client.connection import Connection
from client.local_service import Service
from client.study_client import StudyClient
from services.errors import (
    EXIT_DONE,
    EXIT_PERMANENT,
    EXIT_TRY_AGAIN,
    EXIT_UNAVAILABLE_HERE,
    EXIT_USAGE,
    FoldwiseError,
    MachineUnusable,
)

MIN_RESTART_SECONDS = 2.0
"""Minimum seconds between two starts of a worker, so that a broken one is not restarted in a tight loop."""

EARLY_EXIT_SECONDS = 20.0
"""Seconds after its start within which the exit of a worker counts as early."""

MAX_EARLY_EXITS = 10
"""Early exits in a row after which the service stops, because restarting does not help."""

LOCAL_LEASE_SECONDS = 15.0
"""Seconds that a silent worker keeps its lease; short, because no network can delay a heartbeat."""

START_TIMEOUT_SECONDS = 60.0
"""Seconds to wait for the coordinator to become ready."""

GIVE_UP_SECONDS = 60.0
"""Seconds to repeat a call to the coordinator, longer than one answer may take."""

READY_TIMEOUT_SECONDS = 2.0
"""Seconds to wait for one answer of a coordinator that starts."""


@dataclass
class LocalService:
    """A running service; its caller restarts what died by calling `tend` about once a second."""

    state: StateFolder
    service: Service
    notify: Callable[[str], None]
    study: str | None
    threads: int | None
    start_coordinator: Callable[[], subprocess.Popen[bytes]]
    """Starts the coordinator's process on the service's socket."""

    coordinator: subprocess.Popen[bytes]
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    """The torch device of each worker; a worker that is restarted keeps it."""

    _unusable: dict[str, str] = field(default_factory=dict)
    """Workers that cannot run on this machine, and why."""

    _started: dict[str, float] = field(default_factory=dict)
    _early_exits: int = 0
    _early_exits_of_coordinator: int = 0
    _coordinator_started: float = field(default_factory=time.monotonic)

    @cached_property
    def client(self) -> StudyClient:
        """A client with the admin token, whose calls also restart the coordinator if it died."""

        def pause(seconds: float) -> None:
            self.tend()
            time.sleep(seconds)

        connection = Connection(
            self.service.url, self.service.admin_token, give_up_after=GIVE_UP_SECONDS, pause=pause
        )
        return StudyClient(connection)

    def start_worker(self, name: str, device: str) -> None:
        """Start a worker process on a torch device such as `cuda:1` or `cpu`."""
        command = ["worker", "--name", name, "--device", device, *_folders(self.state)]
        if self.study is not None:
            command += ["--study", self.study]
        if self.threads is not None:
            command += ["--threads", str(self.threads)]
        environment = {"FOLDWISE_URL": self.service.url, "FOLDWISE_TOKEN": self.service.worker_token}
        self.workers[name] = _spawn(command, environment, self.state.logs / f"{name}.log")
        self.devices[name] = device
        self._started[name] = time.monotonic()

    def tend(self) -> None:
        """Restart what died: the coordinator, and workers, except those that a restart would not help.

        Raises:
            MachineUnusable: no worker can run on this machine.
            FoldwiseError: a restart helps no worker, or what was restarted keeps exiting after its start.
        """
        self._restart_dead_coordinator()
        self._restart_dead_workers()

    def _restart_dead_coordinator(self) -> None:
        code = self.coordinator.poll()
        if code is None:
            return
        early = time.monotonic() - self._coordinator_started < EARLY_EXIT_SECONDS
        self._early_exits_of_coordinator = self._early_exits_of_coordinator + 1 if early else 0
        if code >= 0 or self._early_exits_of_coordinator >= MAX_EARLY_EXITS:
            log = self.state.logs / "coordinator.log"
            raise FoldwiseError(f"the coordinator ended ({_describe_exit(code)}): {_last_line(log)}; see {log}")
        self.notify(f"the coordinator ended ({_describe_exit(code)}); restarting it")
        self.coordinator, self._coordinator_started = self.start_coordinator(), time.monotonic()

    def _restart_dead_workers(self) -> None:
        for name, process in self.workers.items():
            code = process.poll()
            if code == EXIT_UNAVAILABLE_HERE and name not in self._unusable:
                self._unusable[name] = _last_line(self.state.logs / f"{name}.log")
                self.notify(
                    f"{name} on {self.devices[name]} ended and is not restarted: {self._unusable[name]}"
                )
            if code is None or code in (EXIT_DONE, EXIT_USAGE, EXIT_PERMANENT, EXIT_UNAVAILABLE_HERE):
                continue
            age = time.monotonic() - self._started[name]
            if age >= MIN_RESTART_SECONDS:
                self._early_exits = self._early_exits + 1 if age < EARLY_EXIT_SECONDS else 0
                if self._early_exits >= MAX_EARLY_EXITS:
                    raise FoldwiseError(
                        f"workers exit soon after their start; see {self.state.logs}/{name}.log"
                    )
                self.notify(f"{name} ended ({_describe_exit(code)}); restarting it")
                self.start_worker(name, self.devices[name])
        codes = {process.poll() for process in self.workers.values()}
        if codes == {EXIT_UNAVAILABLE_HERE}:
            raise MachineUnusable(
                f"no worker can run on this machine; the first one said: {next(iter(self._unusable.values()))}"
            )
        if codes and codes <= {EXIT_USAGE, EXIT_PERMANENT, EXIT_UNAVAILABLE_HERE}:
            raise FoldwiseError(
                f"all workers exited with a permanent error; see {self.state.logs}/worker-*.log"
            )


@contextmanager
def local_service(
    state: StateFolder,
    *,
    devices: Sequence[str],
    port: int,
    notify: Callable[[str], None],
    study: str | None = None,
    threads: int | None = None,
    lease_seconds: float = LOCAL_LEASE_SECONDS,
) -> Iterator[LocalService]:
    """Run PostgreSQL, a coordinator and workers on a state folder until the `with` block ends.

    At the end the workers release their folds, then the coordinator and PostgreSQL stop; all state is kept.

    Args:
        state: the state folder.
        devices: torch device of each worker to start, such as `cuda:0` or `cpu`.
        port: port of the coordinator on 127.0.0.1; 0 means any free one.
        notify: called with a line of text for the user when something happens.
        study: the only study that the workers serve; None means any.
        threads: CPU threads of each worker; None means torch's default.
        lease_seconds: seconds that a silent worker keeps its lease.

    Raises:
        Conflict: a service already uses this folder.
        InvalidInput: the port is occupied.
        FoldwiseError: PostgreSQL or the coordinator does not start.
    """
    with state.lock():
        listener = bind("127.0.0.1", port)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with listener, embedded_postgres(state.database) as postgres:
            database_url = postgres.url
            state.logs.mkdir(exist_ok=True)
            admin, worker = state.tokens()
            service = Service(
                url=url, admin_token=admin, worker_token=worker, database_url=database_url, pid=os.getpid()
            )
            fd, lease = str(listener.fileno()), str(lease_seconds)

            def start_coordinator() -> subprocess.Popen[bytes]:
                return _spawn(
                    ["coordinator", "--fd", fd, *_folders(state), "--lease-seconds", lease],
                    {
                        "FOLDWISE_DATABASE_URL": database_url,
                        "FOLDWISE_ADMIN_TOKEN": admin,
                        "FOLDWISE_WORKER_TOKEN": worker,
                    },
                    state.logs / "coordinator.log",
                    # The socket stays open here, so that another coordinator can answer on it.
                    keep=(listener.fileno(),),
                )

            running = LocalService(
                state=state,
                service=service,
                notify=notify,
                study=study,
                threads=threads,
                start_coordinator=start_coordinator,
                coordinator=start_coordinator(),
            )
            try:
                _wait_ready(running.coordinator, service, state.logs / "coordinator.log")
                state.announce(service)
                notify(f"coordinator ready at {url} (PostgreSQL in {postgres.data})")
                for number, device in enumerate(devices, start=1):
                    running.start_worker(f"worker-{number}", device)
                yield running
            finally:
                _stop([*running.workers.values()])
                _stop([running.coordinator])


def _folders(state: StateFolder) -> list[str]:
    return ["--cache-root", str(state.caches), "--models", str(state.models)]


def _spawn(
    command: list[str], environment: dict[str, str], log: Path, *, keep: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    # Pass secrets in the environment, because every user of the machine can read arguments. Do not inherit
    # variables that the user set for another coordinator.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FOLDWISE_") or name in {"FOLDWISE_LOG", "FOLDWISE_REVISION"}
    }
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own program
            foldwise_command(command),
            env={**inherited, **environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=keep,
            # In its own session, so that Ctrl-C reaches only this process, which stops the others in order.
            start_new_session=True,
            preexec_fn=lambda: stop_with_parent(signal.SIGTERM),  # noqa: PLW1509 - no threads run at this point
        )


def _wait_ready(coordinator: subprocess.Popen[bytes], service: Service, log: Path) -> None:
    with Connection(service.url, service.admin_token, give_up_after=1.0) as connection:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if coordinator.poll() is not None:
                break
            try:
                # The socket that the coordinator inherits accepts connections even after its end.
                connection.call("GET", "/workers", timeout=READY_TIMEOUT_SECONDS)
            except FoldwiseError:
                continue
            return
    raise FoldwiseError(f"the coordinator did not start: {_last_line(log)}; see {log}")


def _last_line(log: Path) -> str:
    """What a process that has ended said last, which is its error."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("foldwise: ") if lines else "it has logged nothing"


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"temporary failure, exit code {code}" if code == EXIT_TRY_AGAIN else f"exit code {code}"
