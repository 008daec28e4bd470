"""The application on a real socket, and callers of every scope."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from cli.local.ports import bind
from client.connection import Connection
from client.study_client import StudyClient
from coordinator.app import create_app, server_config
from coordinator.runtime import runtime_of
from coordinator.settings import CoordinatorSettings
from services.contracts import NewToken, TokenScope

ADMIN_TOKEN = "admin-token-of-this-test"
WORKER_TOKEN = "worker-token-of-this-test"


@contextmanager
def served(app: FastAPI, **options: Any) -> Iterator[httpx.Client]:
    """A client of the application, which runs while the context lasts."""
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(server_config(app, timeout_graceful_shutdown=1, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        runtime = runtime_of(app)
        app.state.runtime = replace(runtime, ending=lambda: server.should_exit or runtime.ending())
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def live_coordinator(settings: CoordinatorSettings) -> Iterator[httpx.Client]:
    """A client with the admin's token of a coordinator that looks for work often."""
    with served(create_app(replace(settings, leader_interval=0.05))) as client:
        client.headers.update(bearer(settings.admin_token))
        yield client


@contextmanager
def study_client(settings: CoordinatorSettings, token: str) -> Iterator[StudyClient]:
    """A client of studies with this token, of a coordinator that runs while the context lasts."""
    with (
        served(create_app(settings)) as http,
        Connection(str(http.base_url), token, give_up_after=5) as connection,
    ):
        yield StudyClient(connection)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def make_token(client: httpx.Client, scope: TokenScope, name: str | None = None) -> NewToken:
    answer = client.post(
        "/api/v1/tokens", headers=bearer(ADMIN_TOKEN), json={"name": name or scope.value, "scope": scope.value}
    )
    assert answer.status_code == 201, answer.text
    return NewToken.model_validate_json(answer.content)
