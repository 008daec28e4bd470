"""A database that hangs without closing its connections, as a failed-over or frozen one does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from cli.local.embedded_postgres import embedded_postgres
from coordinator.app import create_app
from coordinator.settings import CoordinatorSettings
from coordinator.store.database import connect, migrate
from tests.harness.frozen_postgres import frozen
from tests.harness.served_app import ADMIN_TOKEN, WORKER_TOKEN, bearer, served

THREADS = 60
"""More than the threads that answer requests."""


def test_the_process_is_alive_while_every_thread_waits(tmp_path: Path) -> None:
    with embedded_postgres(tmp_path / "postgres") as server:
        engine = connect(server.url)
        migrate(engine)
        engine.dispose()
        settings = CoordinatorSettings(
            database_url=server.url,
            cache_root=tmp_path,
            admin_token=ADMIN_TOKEN,
            worker_token=WORKER_TOKEN,
            requests_per_second=0,
        )
        with served(create_app(settings)) as client, ThreadPoolExecutor(THREADS) as callers:
            url = str(client.base_url)

            def ask(_: int) -> int:
                # Every call has its own connection; the route waits for the database in a thread.
                return httpx.get(f"{url}/readyz", timeout=120, trust_env=False).status_code

            assert ask(0) == 200
            with frozen(server):
                asked = [callers.submit(ask, number) for number in range(THREADS)]
                for _ in range(5):
                    assert httpx.get(f"{url}/livez", timeout=15, trust_env=False).status_code == 200
                assert not any(call.done() for call in asked)
            assert {call.result() for call in asked} <= {200, 503}
            assert client.get("/api/v1/studies", headers=bearer(ADMIN_TOKEN)).status_code == 200
