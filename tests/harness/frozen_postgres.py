"""A PostgreSQL that hangs without closing its connections, as a failed-over or frozen one does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from cli.local.embedded_postgres import PostgresServer


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    """All processes of the server are stopped while the context lasts."""
    postmaster = psutil.Process(server.pid)
    processes = [*postmaster.children(recursive=True), postmaster]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
