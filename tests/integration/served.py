"""An application on a real socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import uvicorn

from cli.ports import bind
from coordinator.app import create_app
from coordinator.settings import CoordinatorSettings


@contextmanager
def served(settings: CoordinatorSettings) -> Iterator[httpx.Client]:
    """A client with the admin's token of a coordinator that looks for work often."""
    app = create_app(replace(settings, leader_interval=0.05), ending=lambda: server.should_exit)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    headers = {"Authorization": f"Bearer {settings.admin_token}"}
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
