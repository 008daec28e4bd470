"""The coordinator as a web server, on a port that is known to be free before anything else starts."""

from __future__ import annotations

import socket

import uvicorn

from coordinator.app import create_app
from coordinator.settings import CoordinatorSettings
from coordinator.store.database import connect, migrate
from coordinator.store.preparation import wait_for_schema
from k8s.cluster import Cluster
from k8s.token_review import TokenReviewer

SCHEMA_SECONDS = 600.0
"""A coordinator that does not migrate waits so long for another process to do it."""


def serve_coordinator(
    settings: CoordinatorSettings,
    listener: socket.socket,
    reviewer: TokenReviewer | None = None,
    *,
    cluster: Cluster | None = None,
    migrates: bool = True,
) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C; requests under way are answered first.

    Args:
        settings: given at the start.
        listener: a bound socket.
        reviewer: as `create_app` takes it.
        cluster: likewise.
        migrates: bring the schema up to date first; otherwise wait until it is.

    Raises:
        InvalidInput, Unavailable: the database's URL is wrong, or it does not answer.
        Conflict: its schema is of a newer program.
    """
    # Here and not in the application: what is wrong with the database is one line, not a server's traceback.
    engine = connect(settings.database_url)
    if migrates:
        migrate(engine)
    else:
        wait_for_schema(engine, SCHEMA_SECONDS)
    engine.dispose()
    app = create_app(settings, ending=lambda: server.should_exit, reviewer=reviewer, cluster=cluster)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
