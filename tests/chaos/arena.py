"""The processes of one seed: PostgreSQL, workers, two coordinators, one on a machine that can be lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

from cli.local.embedded_postgres import PostgresServer
from tests.harness import lost_machine
from tests.harness.forwarding import forwarded

COORDINATORS, WORKERS = 2, 24
TRIALS, SUBJECTS = 40, 20
LEASE_SECONDS = 3.0
BOUND = 0.6
ADMIN, WORKER = "admin-token-of-the-chaos-test", "worker-token-of-the-chaos-test"
LOST = 1
"""The coordinator that runs on the machine that can be lost, where there is one."""


@dataclass
class Arena:
    """The processes of one seed."""

    folder: Path
    postgres: PostgresServer
    database_url: str
    study: str
    ports: list[int]
    two_machines: bool
    """Whether one coordinator runs in a network namespace."""

    repeatable: bool
    """Whether two attempts at a fold have the same result."""

    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Start `coordinator-N` or `worker-N`."""
        kind, number = name.split("-")
        environment = {**os.environ, "FOLDWISE_TOKEN": WORKER, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m"]
        if kind == "coordinator":
            environment |= {
                "FOLDWISE_DATABASE_URL": self._url_of_database(int(number)),
                "FOLDWISE_ADMIN_TOKEN": ADMIN,
                "FOLDWISE_WORKER_TOKEN": WORKER,
            }
            host, port = self._host(int(number)), str(self.ports[int(number)])
            command += ["cli.main", "coordinator", "--host", host, "--port", port]
            command += ["--cache-root", str(self.folder / "caches"), "--lease-seconds", str(LEASE_SECONDS)]
            if self._is_lost(int(number)):
                command = lost_machine.inside(command)
        else:
            url = self.url(int(number) % COORDINATORS)
            command += ["tests.chaos.faulty_worker", url, self.study, name, str(self.folder)]
            command += ["repeatable"] if self.repeatable else []
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def url(self, coordinator: int) -> str:
        """Address of a coordinator."""
        return f"http://{self._host(coordinator)}:{self.ports[coordinator]}"

    def recorded(self, name: str) -> list[str]:
        """The lines that workers wrote to one of their files."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

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

    def _is_lost(self, coordinator: int) -> bool:
        return self.two_machines and coordinator == LOST

    def _host(self, coordinator: int) -> str:
        return lost_machine.INSIDE if self._is_lost(coordinator) else "127.0.0.1"

    def _url_of_database(self, coordinator: int) -> str:
        if not self._is_lost(coordinator):
            return self.database_url
        user = make_url(self.database_url).username
        return f"postgresql://{user}@{lost_machine.OUTSIDE}:{lost_machine.POSTGRES_PORT}/chaos"


@contextmanager
def arena(
    folder: Path, postgres: PostgresServer, study: str, *, two_machines: bool, repeatable: bool
) -> Iterator[Arena]:
    """Coordinators on a new database; workers are started later."""
    server = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("CREATE DATABASE chaos"))
    server.dispose()
    url = make_url(postgres.url)
    database_url = url.set(database="chaos").render_as_string(hide_password=False)
    ports = [_free_port() for _ in range(COORDINATORS)]
    made = Arena(folder, postgres, database_url, study, ports, two_machines, repeatable)
    # A proxy between the other machine and the database answers for both when the network is cut.
    sockets = url.query["host"]
    proxy = forwarded(
        (lost_machine.OUTSIDE, lost_machine.POSTGRES_PORT), f"{sockets}/.s.PGSQL.{url.port or 5432}"
    )
    with proxy if two_machines else nullcontext():
        try:
            for number in range(COORDINATORS):
                made.start(f"coordinator-{number}")
            yield made
        finally:
            made.end()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
