"""Workers, clients and coordinators of different versions understand each other, or say why they do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from sqlalchemy import Engine

import worker.loop
from client.connection import Connection
from client.study_client import StudyClient
from coordinator.app import create_app
from coordinator.settings import CoordinatorSettings
from services.contracts import ClaimRequest, Clone, FoldTask, TokenScope, TokenSpec, WorkerInfo, protocol
from services.contracts.protocol import PROTOCOL, PROTOCOL_HEADER
from services.errors import EXIT_DONE, EXIT_PERMANENT, Conflict, NotFound
from services.seeds import sha256_of
from tests.harness.interception import Interception
from tests.harness.newer_replies import seem_newer, with_unknown_fields
from tests.harness.served_app import ADMIN_TOKEN, WORKER_TOKEN, bearer, served
from tests.worker.conftest import LiveCoordinator
from tests.worker.test_loop import make_worker
from worker import coordinator_client

pytestmark = pytest.mark.usefixtures("workers_in_this_process")

TASK_OF_PROTOCOL = {
    1: "7d2f402f52b496a8f7eb0dcb0f65f7e66ff82c71c1fe3784afe0a6efe4d6bd46",
    2: "86daa5977e53ebb6562bc39dc96deb67bd2c1a190f2bbc93b488e56df6dc5491",
}
"""Hash of the names in a task, by version of the protocol."""


def test_a_worker_runs_for_a_newer_coordinator_and_a_client_reads_the_same_from_it(
    settings: CoordinatorSettings, engine: Engine, cache_root: Path, tmp_path: Path
) -> None:
    settings = replace(settings, models_root=tmp_path)
    newer = create_app(settings)
    seem_newer(newer)
    with served(create_app(settings)) as now, served(newer) as future:
        coordinator = LiveCoordinator(future, engine, Interception())
        coordinator.create_study(
            pruning=[{"rule": "bound", "threshold": 0.5}],
            space={"dropout": {"low": 0.0, "high": 1.0}, "clahe": [True, False]},
        )
        assert coordinator.call("GET", "/studies/s")["from_the_future"] == {"deep": [1]}
        assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_DONE
        coordinator.call("POST", "/studies/s/final", json={"name": "final"})
        assert make_worker(coordinator.url, cache_root, study="final", models_root=tmp_path).run() == EXIT_DONE
        assert coordinator.outcomes() == ["done"] * 3
        calls: list[Callable[[StudyClient], Any]] = [
            lambda client: client.studies(),
            lambda client: client.get("s"),
            lambda client: client.trials("s"),
            lambda client: client.folds("s", 0),
            lambda client: client.fold("s", 0, 1),
            lambda client: client.confusion("s", 0),
            lambda client: client.split("s"),
            lambda client: client.costs("s"),
            lambda client: client.importance("s"),
            lambda client: client.datasets(),
            lambda client: [seen.name for seen in client.workers()],
            lambda client: client.models(),
            lambda client: client.tokens(),
        ]
        with (
            StudyClient(Connection(str(now.base_url), ADMIN_TOKEN, give_up_after=0)) as today,
            StudyClient(Connection(str(future.base_url), ADMIN_TOKEN, give_up_after=0)) as reader,
        ):
            reader.create_token(TokenSpec(name="a", scope=TokenScope.READ))
            assert reader.clone("s", Clone(name="t", changes={"start": False})).state == "draft"
            for call in calls:
                assert call(reader) == call(today)
                assert call(today)
            with pytest.raises(NotFound, match="no study 'none'"):
                reader.get("none")
            with pytest.raises(Conflict):
                reader.change_state("s", "start")
            refused = future.post(
                "/api/v1/studies",
                headers=bearer(ADMIN_TOKEN),
                json=with_unknown_fields(today.get("s").spec.model_dump(mode="json")),
            )
            assert refused.status_code == 422, "requests are strict"


def claim(coordinator: LiveCoordinator, **headers: str) -> httpx.Response:
    request = ClaimRequest(
        worker=WorkerInfo(id="worker-x", name="x", device="cpu"), caches=("f" * 64,), wait_seconds=5
    )
    return coordinator.http.post(
        "/api/v1/claims",
        headers={**bearer(WORKER_TOKEN), "Idempotency-Key": "k" * 16, **headers},
        json=request.model_dump(mode="json"),
    )


def test_a_worker_from_before_versions_gets_a_fold(coordinator: LiveCoordinator) -> None:
    coordinator.create_study()
    assert claim(coordinator).status_code == 200
    assert claim(coordinator, **{PROTOCOL_HEADER: "one"}).status_code == 422


def test_a_worker_that_is_too_old_ends_for_good_without_a_lease(
    coordinator: LiveCoordinator, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "OLDEST_WORKER", PROTOCOL + 1)
    monkeypatch.setattr(protocol, "PROTOCOL", PROTOCOL + 1)
    coordinator.create_study()
    with structlog.testing.capture_logs() as logs:
        assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_PERMANENT
    (refused,) = [line for line in logs if line["event"] == "worker_version_refused"]
    assert "speaks version 2 of the protocol, this coordinator 3 to 3; run workers of" in refused["reason"]
    assert coordinator.outcomes() == []


def test_a_worker_that_becomes_too_old_has_its_result_counted_and_gets_no_other_fold(
    coordinator: LiveCoordinator, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator.create_study()
    coordinator.interception.pattern = r"PUT /api/v1/leases/.*/result"
    coordinator.interception.before = lambda _: monkeypatch.setattr(protocol, "OLDEST_WORKER", PROTOCOL + 1)
    assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_PERMANENT
    assert coordinator.outcomes() == ["done"]


def test_a_worker_that_is_too_new_waits_for_the_upgrade(
    coordinator: LiveCoordinator, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_client, "_VERSION", {PROTOCOL_HEADER: str(PROTOCOL + 1)})
    monkeypatch.setattr(worker.loop, "UPGRADE_PAUSE_SECONDS", 0.05)
    coordinator.create_study()
    with structlog.testing.capture_logs() as logs:
        code = make_worker(coordinator.url, cache_root, study="s", give_up_after=0.3).run()
    assert code == EXIT_PERMANENT
    assert coordinator.outcomes() == []
    waited = [line for line in logs if line["event"] == "coordinator_too_old"]
    assert len(waited) > 1
    assert (
        "speaks version 3 of the protocol, this coordinator 0 to 2; upgrade the coordinator"
        in waited[0]["reason"]
    )

    coordinator.interception.pattern = "POST /api/v1/claims"
    coordinator.interception.before = lambda number: number and monkeypatch.setattr(protocol, "PROTOCOL", 3)
    assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_DONE
    assert coordinator.outcomes() == ["done", "done"]


def names_in(schema: Any, *, are_fields: bool = False) -> Any:
    """Names of the fields and of their choices in a JSON schema, by the object that has them."""
    if isinstance(schema, list):
        return [names_in(item) for item in schema]
    if not isinstance(schema, dict):
        return None
    choices = {key: schema[key] for key in ("enum", "const") if key in schema}
    inside = {
        key: names_in(value, are_fields=key == "properties" and not are_fields)
        for key, value in schema.items()
        if are_fields or key not in {"enum", "const", "required", "examples", "default"}
    }
    return choices | {key: value for key, value in inside.items() if value or are_fields}


def test_a_changed_task_raises_the_version() -> None:
    found = sha256_of(names_in(FoldTask.model_json_schema()))
    assert TASK_OF_PROTOCOL.get(PROTOCOL) == found, (
        "a task has changed: if a worker that does not know the change would train something else, raise "
        "PROTOCOL and OLDEST_WORKER in services/contracts/protocol.py; then set "
        f"TASK_OF_PROTOCOL[{PROTOCOL}] = {found!r}"
    )
