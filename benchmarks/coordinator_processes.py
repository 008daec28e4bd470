"""Further coordinator processes on one database, and the resources that all coordinators use."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

import psutil
from sqlalchemy import create_engine, text

from cli.local.ports import bind
from cli.local.service import LocalService
from cli.local.state import StateFolder


@contextmanager
def more_coordinators(
    state: StateFolder, service: LocalService, count: int, *, lease_seconds: float
) -> Iterator[list[str]]:
    """Run more coordinators on a service's database, each on its own port; yield their URLs.

    A connection that comes before a coordinator is ready waits.

    Args:
        state: the service's state folder.
        service: the running service.
        count: number of coordinators to add.
        lease_seconds: seconds that a silent worker keeps its lease.
    """
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
                "--lease-seconds": lease_seconds,
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


class ResourceMonitor:
    """Samples the connections to the database in a thread, and the coordinators' memory on request."""

    def __init__(self, service: LocalService) -> None:
        self.connections = 0
        self.memory: list[int] = []
        self._coordinators = [
            child for child in psutil.Process().children() if "coordinator" in child.cmdline()
        ]
        self._engine = create_engine(service.service.database_url)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def record_memory(self) -> None:
        """Append the resident memory of all coordinators, in bytes."""
        self.memory.append(sum(coordinator.memory_info().rss for coordinator in self._coordinators))

    def stop(self) -> None:
        """Stop sampling."""
        self._stopped.set()
        self._thread.join()
        self._engine.dispose()

    def _count(self) -> None:
        others = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not self._stopped.wait(0.2):
                self.connections = max(self.connections, connection.scalar(text(others)) or 0)
