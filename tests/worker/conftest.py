"""A coordinator whose answers can be intercepted, a study on the tiny cache, and the leases in the database."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, text

from coordinator.settings import CoordinatorSettings
from tests.harness.interception import Interception, intercept
from tests.harness.served_app import ADMIN_TOKEN, bearer


@dataclass(frozen=True)
class LiveCoordinator:
    """A coordinator on a real socket and its database."""

    http: httpx.Client
    engine: Engine
    interception: Interception

    @property
    def url(self) -> str:
        return str(self.http.base_url).rstrip("/")

    def call(self, method: str, path: str, **given: Any) -> Any:
        """The JSON of an answer to the admin; None where it is empty."""
        answer = self.http.request(method, f"/api/v1{path}", headers=bearer(ADMIN_TOKEN), **given)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def create_study(self, *, epochs: int = 1, **given: Any) -> None:
        """Create the study `s`: one trial of two folds, trained in milliseconds per epoch."""
        training = {"frames": 2, "frame_size": 16, "width": 1, "batch_size": 16, "epochs": epochs}
        spec = {
            "name": "s",
            "cache": "tiny",
            "trials": 1,
            "workers_per_trial": 1,
            # A test that starts a second worker decides itself which fold it gets.
            "idle_workers_help": False,
            "protocol": {"kind": "kfold", "k": 2},
            "pruning": [],
            "space": {"dropout": [0.25]},
            "training": {**training, "augmentation": {}},
            "economies": {"stop_when_perfect": False},
            **given,
        }
        self.call("POST", "/studies", json=spec)

    def query(self, statement: str, **given: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement), given)]

    def execute(self, statement: str, **given: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(statement), given)

    def outcomes(self) -> list[str | None]:
        """The outcomes of all leases in the order of their grant; None of a live one."""
        return [outcome for (outcome,) in self.query("SELECT outcome FROM foldwise.leases ORDER BY granted_at")]

    def expire_leases(self) -> None:
        """Let the database's clock pass the end of all live leases; the leader sees it in its next round."""
        self.execute(
            "UPDATE foldwise.leases SET expires_at = clock_timestamp() - interval '1 s' WHERE outcome IS NULL"
        )

    def trains(self) -> bool:
        """Whether a heartbeat has reported a step of a live lease."""
        return bool(self.query("SELECT 1 FROM foldwise.leases WHERE outcome IS NULL AND step > 0"))


@pytest.fixture
def workers_in_this_process() -> Iterator[None]:
    """Workers change signal handlers and torch's threads; both are as before when the test has ended."""
    import torch

    # Hypothesis registers one; what a signal handler raises inside it is swallowed.
    callbacks = list(gc.callbacks)
    gc.callbacks.clear()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    gc.callbacks.extend(callbacks)


@pytest.fixture
def settings(settings: CoordinatorSettings) -> CoordinatorSettings:
    """Heartbeats come often, and no lease expires by itself."""
    return replace(settings, lease_seconds=60.0, heartbeat_seconds=0.25)


@pytest.fixture
def interception(app: FastAPI) -> Interception:
    return intercept(app, Interception())


@pytest.fixture
def coordinator(interception: Interception, client: httpx.Client, engine: Engine) -> LiveCoordinator:
    return LiveCoordinator(client, engine, interception)
