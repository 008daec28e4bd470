"""A finished fold is not lost with its worker: the next one with the same folder hands it in first."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from client.connection import Connection
from services.contracts import WorkerInfo
from services.errors import EXIT_DONE, EXIT_TRY_AGAIN, Unavailable
from services.model_catalogue import list_models
from tests.harness.coordinator_harness import Harness
from tests.harness.served_app import WORKER_TOKEN
from tests.worker.conftest import LiveCoordinator
from tests.worker.test_loop import RESULT, let_another_run_it, make_worker, terminate, when
from worker.coordinator_client import CoordinatorClient
from worker.unreported_results import (
    KEPT_DAYS,
    UnreportedResult,
    keep_result,
    report_unreported,
    unreported_folder,
)

pytestmark = pytest.mark.usefixtures("workers_in_this_process")


@pytest.fixture
def kept(coordinator: LiveCoordinator, cache_root: Path, tmp_path: Path) -> Path:
    """The file of a finished fold whose worker got SIGTERM while the coordinator did not answer."""
    coordinator.create_study()
    results = coordinator.interception
    results.pattern, results.unreachable = RESULT, lambda number: True
    with (
        structlog.testing.capture_logs() as logs,
        when(lambda: results.count >= 2, terminate),
    ):
        assert make_worker(coordinator.url, cache_root, models_root=tmp_path).run() == EXIT_TRY_AGAIN
    results.unreachable = lambda number: False
    (file,) = unreported_folder(tmp_path).iterdir()
    (lost,) = [line for line in logs if line["event"] == "result_not_handed_in"]
    assert lost["kept"] == str(file)
    return file


@pytest.fixture
def caller(coordinator: LiveCoordinator) -> Iterator[CoordinatorClient]:
    with Connection(coordinator.url, WORKER_TOKEN, give_up_after=0) as connection:
        yield CoordinatorClient(connection, WorkerInfo(id="worker-next", name="next", device="cpu"))


def events(logs: list[Any]) -> list[str]:
    return [line["event"] for line in logs if line["event"].startswith("unreported")]


def test_the_next_worker_hands_it_in_before_it_claims(
    kept: Path, coordinator: LiveCoordinator, cache_root: Path, tmp_path: Path
) -> None:
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert list_models(tmp_path) == []
    written = UnreportedResult.model_validate_json(kept.read_bytes())
    with structlog.testing.capture_logs() as logs:
        assert make_worker(coordinator.url, cache_root, study="s", models_root=tmp_path).run() == EXIT_DONE
    assert events(logs) == ["unreported_result_handed_in"]
    assert list(kept.parent.iterdir()) == []
    assert coordinator.outcomes() == ["done", "done"], "the first fold was not run again"
    stored = coordinator.query("SELECT payload FROM foldwise.results WHERE lease_id = :id", id=written.lease.id)
    assert stored == [(written.result.model_dump(mode="json"),)]


def test_a_coordinator_that_does_not_answer_for_too_long_loses_nothing(
    coordinator: LiveCoordinator, cache_root: Path, tmp_path: Path
) -> None:
    coordinator.create_study()
    results = coordinator.interception
    results.pattern, results.unreachable = RESULT, lambda number: True
    worker = make_worker(coordinator.url, cache_root, models_root=tmp_path, give_up_after=0.5)
    with pytest.raises(Unavailable):
        worker.run()
    (file,) = unreported_folder(tmp_path).iterdir()
    # The next worker finds it still not answering.
    with pytest.raises(Unavailable):
        make_worker(coordinator.url, cache_root, models_root=tmp_path, give_up_after=0.5).run()
    assert file.exists()
    assert coordinator.outcomes() == [None], "it has claimed nothing"


def test_a_fold_that_was_run_again_meanwhile_deletes_it(
    kept: Path, coordinator: LiveCoordinator, harness: Harness, caller: CoordinatorClient
) -> None:
    let_another_run_it(coordinator, harness)
    with structlog.testing.capture_logs() as logs:
        report_unreported(caller, kept.parent, coordinator.url)
    assert events(logs) == ["unreported_result_refused"]
    assert not kept.exists()
    assert coordinator.outcomes() == ["lapsed", "done"]


def test_a_deleted_study_deletes_it_but_another_coordinator_does_not(
    kept: Path, coordinator: LiveCoordinator, caller: CoordinatorClient
) -> None:
    coordinator.call("POST", "/studies/s/pause?now=true")
    coordinator.call("DELETE", "/studies/s?confirm=s")
    with structlog.testing.capture_logs() as logs:
        report_unreported(caller, kept.parent, "http://another:8080")
        assert kept.exists()
        report_unreported(caller, kept.parent, coordinator.url)
    assert events(logs) == ["unreported_result_of_another_coordinator", "unreported_result_refused"]
    assert not kept.exists()


def test_other_refusals_keep_it(kept: Path, coordinator: LiveCoordinator) -> None:
    with (
        Connection(coordinator.url, "wrong", give_up_after=0) as connection,
        structlog.testing.capture_logs() as logs,
    ):
        stranger = CoordinatorClient(connection, WorkerInfo(id="worker-next", name="next", device="cpu"))
        report_unreported(stranger, kept.parent, coordinator.url)
    assert events(logs) == ["unreported_result_not_handed_in"]
    assert kept.exists()


def test_workers_that_find_it_together_count_it_once(
    kept: Path, coordinator: LiveCoordinator, caller: CoordinatorClient
) -> None:
    together = threading.Barrier(4)
    coordinator.interception.before = lambda number: together.wait(30)
    errors: list[BaseException] = []

    def hand_in() -> None:
        try:
            report_unreported(caller, kept.parent, coordinator.url)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=hand_in) for _ in range(4)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert errors == []
    assert not kept.exists()
    assert coordinator.outcomes() == ["done"]
    assert coordinator.query("SELECT count(*) FROM foldwise.results") == [(1,)]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", None])
def test_a_damaged_file_is_moved_aside(
    content: bytes | None, kept: Path, coordinator: LiveCoordinator, caller: CoordinatorClient
) -> None:
    kept.write_bytes(kept.read_bytes()[:-10] if content is None else content)
    with structlog.testing.capture_logs() as logs:
        report_unreported(caller, kept.parent, coordinator.url)
        report_unreported(caller, kept.parent, coordinator.url)
    assert events(logs) == ["unreported_result_damaged"]
    assert [path.suffix for path in kept.parent.iterdir()] == [".damaged"]
    assert coordinator.outcomes() == [None]


def test_old_files_are_deleted(kept: Path, coordinator: LiveCoordinator, caller: CoordinatorClient) -> None:
    damaged, partial, other = (kept.with_name(name) for name in ("a.damaged", "b.partial", "mine.txt"))
    for path in (damaged, partial, other):
        path.touch()
    for path in (kept, damaged, partial, other):
        os.utime(path, (0, time.time() - KEPT_DAYS * 86_400 - 60))
    with structlog.testing.capture_logs() as logs:
        report_unreported(caller, kept.parent, coordinator.url)
    assert events(logs) == ["unreported_result_too_old"] * 3
    assert list(kept.parent.iterdir()) == [other]
    assert coordinator.outcomes() == [None]


def test_a_newer_worker_may_have_written_more(
    kept: Path, coordinator: LiveCoordinator, caller: CoordinatorClient
) -> None:
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "more": 1}))
    report_unreported(caller, kept.parent, coordinator.url)
    assert coordinator.outcomes() == ["done"]


def test_what_a_coordinator_calls_a_lease_is_no_path(kept: Path, tmp_path: Path) -> None:
    unreported = UnreportedResult.model_validate_json(kept.read_bytes())
    hostile = unreported.lease.model_copy(update={"id": "../../evil"})
    folder = tmp_path / "new"
    file = keep_result(folder, unreported.model_copy(update={"lease": hostile}))
    assert list(folder.iterdir()) == [file]


@pytest.mark.parametrize("folder", [None, "a file"])
def test_without_a_folder_the_worker_says_that_the_result_is_lost(
    folder: str | None, coordinator: LiveCoordinator, cache_root: Path, tmp_path: Path
) -> None:
    if folder is not None:
        unreported_folder(tmp_path).touch()
    coordinator.create_study()
    results = coordinator.interception
    results.pattern, results.unreachable = RESULT, lambda number: True
    with (
        structlog.testing.capture_logs() as logs,
        when(lambda: results.count >= 2, terminate),
    ):
        root = None if folder is None else tmp_path
        assert make_worker(coordinator.url, cache_root, models_root=root).run() == EXIT_TRY_AGAIN
    (lost,) = [line for line in logs if line["event"] == "result_not_handed_in"]
    assert lost["kept"] is None
    assert ("result_not_kept" in [line["event"] for line in logs]) == (folder is not None)
