"""Listening sockets, taken before anything else starts."""

from __future__ import annotations

import socket

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
