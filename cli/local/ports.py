"""Listening sockets, bound before anything else starts."""

from __future__ import annotations

import socket

from services.errors import InvalidInput


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 means any free one.

    Raises:
        InvalidInput: the port is occupied, or this user has no permission to use it.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # From now on a connection waits for the server; before, it would be refused.
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InvalidInput(
            f"--port {port} on {host}: {error.strerror}; choose another with --port", field="port"
        ) from error
    return listener
