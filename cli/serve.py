"""Web servers on a port that is known to be free before anything else starts."""

from __future__ import annotations

import socket

import uvicorn

from coordinator.app import create_app
from coordinator.settings import CoordinatorSettings
from coordinator.store.database import connect, migrate
from k8s.token_review import TokenReviewer
from services.errors import InvalidInput


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any that is free.

    Raises:
        InvalidInput: the port is occupied, or not ours to take.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # From here on a caller's connection waits for the server instead of being refused.
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InvalidInput(
            f"--port {port} on {host}: {error.strerror}; choose another with --port", field="port"
        ) from error
    return listener


def serve_coordinator(
    settings: CoordinatorSettings, listener: socket.socket, reviewer: TokenReviewer | None = None
) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C; requests under way are answered first.

    Raises:
        InvalidInput, Unavailable: the database's URL is wrong, or it does not answer.
    """
    # Here and not in the application: what is wrong with the database is one line, not a server's traceback.
    engine = connect(settings.database_url)
    migrate(engine)
    engine.dispose()
    app = create_app(settings, ending=lambda: server.should_exit, reviewer=reviewer)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
