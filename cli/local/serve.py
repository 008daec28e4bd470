"""The coordinator as a web server on a bound socket."""

from __future__ import annotations

import gc
import socket

import uvicorn

from coordinator.app import create_app, server_config
from coordinator.settings import CoordinatorSettings
from coordinator.store.database import MIGRATION_SECONDS, connect, migrate
from coordinator.store.preparation import wait_for_schema
from k8s.cluster import Cluster
from k8s.token_review import TokenReviewer

SCHEMA_TIMEOUT_SECONDS = 600.0
"""Seconds that a coordinator which does not migrate waits for another process to do so."""


def serve_coordinator(
    settings: CoordinatorSettings,
    listener: socket.socket,
    reviewer: TokenReviewer | None = None,
    *,
    cluster: Cluster | None = None,
    migrates: bool = True,
) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C; it answers running requests before it stops.

    Args:
        settings: the coordinator's settings.
        listener: a bound socket.
        reviewer: checks service account tokens, see `create_app`.
        cluster: the Kubernetes cluster that runs the workers, see `create_app`.
        migrates: whether to migrate the database first; otherwise wait until another process has.

    Raises:
        InvalidInput, Unavailable: the database's URL is wrong, or the database does not answer.
        Conflict: the database's schema is newer than this program.
    """
    # Checked here, not in the application, so that a database error prints one line instead of a traceback.
    engine = connect(settings.database_url, answer_seconds=MIGRATION_SECONDS)
    try:
        if migrates:
            migrate(engine)
        else:
            wait_for_schema(engine, SCHEMA_TIMEOUT_SECONDS)
    finally:
        engine.dispose()
    app = create_app(settings, ending=lambda: server.should_exit, reviewer=reviewer, cluster=cluster)
    # A body becomes millions of objects, and Python would search all of them for cycles again and again: five
    # seconds instead of half a second for 14 MiB.
    gc.set_threshold(100_000, 20, 100)
    server = uvicorn.Server(server_config(app, timeout_graceful_shutdown=5))
    server.run(sockets=[listener])
