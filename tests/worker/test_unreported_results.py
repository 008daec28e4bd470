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

import httpx
import pytest
import structlog

from client.connection import Connection
from services.contracts import ComputePlan, FoldAssignment, WorkerInfo
from services.errors import EXIT_DONE, EXIT_TRY_AGAIN, ScopeMissing, TokenRefused, Unavailable
from services.model_catalogue import list_models
from tests.harness.coordinator_harness import Harness, wait_until
from tests.harness.served_app import WORKER_TOKEN
from tests.harness.simulated_results import make_result
from tests.harness.tiny_cache import FINGERPRINT
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
def kept(coordinator: LiveCoordinator, harness: Harness, tmp_path: Path) -> Path:
    """The file of a finished fold, as a worker leaves it whose result nobody has taken."""
    coordinator.create_study()
    assignments: list[FoldAssignment] = []

    def claimed() -> bool:
        assignments.extend(filter(None, [harness.claim()]))
        return bool(assignments)

    wait_until(claimed)
    with harness.sessions.begin() as session:
        result = harness.result(session, assignments[0], wrong=0)
    unreported = UnreportedResult(coordinator=coordinator.url, lease=assignments[0].lease, result=result)
    coordinator.interception.pattern = RESULT
    return keep_result(unreported_folder(tmp_path), unreported)


@pytest.fixture
def caller(coordinator: LiveCoordinator) -> Iterator[CoordinatorClient]:
    with Connection(coordinator.url, WORKER_TOKEN, give_up_after=0) as connection:
        yield CoordinatorClient(connection, WorkerInfo(id="worker-next", name="next", device="cpu"))


def events(logs: list[Any]) -> list[str]:
    return [line["event"] for line in logs if line["event"].startswith("unreported")]


def test_the_next_worker_hands_it_in_before_it_claims(
    coordinator: LiveCoordinator, cache_root: Path, tmp_path: Path
) -> None:
    coordinator.create_study()
    results = coordinator.interception
    results.pattern, results.unreachable = RESULT, lambda number: True
    with (
        structlog.testing.capture_logs() as logs,
        when(lambda: results.count >= 2, terminate),
    ):
        assert make_worker(coordinator.url, cache_root, models_root=tmp_path).run() == EXIT_TRY_AGAIN
    (kept,) = unreported_folder(tmp_path).iterdir()
    assert [line["kept"] for line in logs if line["event"] == "result_not_handed_in"] == [str(kept)]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert list_models(tmp_path) == []
    written = UnreportedResult.model_validate_json(kept.read_bytes())
    # The next worker finds it still not answering, and claims nothing.
    with pytest.raises(Unavailable):
        make_worker(coordinator.url, cache_root, models_root=tmp_path, give_up_after=0.1).run()
    assert kept.exists()
    assert coordinator.outcomes() == [None]
    results.unreachable = lambda number: False
    with structlog.testing.capture_logs() as logs:
        assert make_worker(coordinator.url, cache_root, study="s", models_root=tmp_path).run() == EXIT_DONE
    assert events(logs) == ["unreported_result_handed_in"]
    assert list(kept.parent.iterdir()) == []
    assert coordinator.outcomes() == ["done", "done"], "the first fold was not run again"
    stored = coordinator.query("SELECT payload FROM foldwise.results WHERE lease_id = :id", id=written.lease.id)
    assert stored == [(written.result.model_dump(mode="json"),)]


def test_no_answer_or_a_refused_token_keep_a_result_and_another_refusal_does_not(
    coordinator: LiveCoordinator, cache_root: Path, tmp_path: Path
) -> None:
    coordinator.create_study(trials=2, workers_per_trial=2)
    reader = coordinator.call("POST", "/tokens", json={"name": "reader", "scope": "read"})["token"]
    results = coordinator.interception
    for token, error, event, kept in (
        (reader, ScopeMissing, "result_refused", []),
        ("guess", TokenRefused, "result_not_handed_in", [".json"]),
        (WORKER_TOKEN, Unavailable, "result_not_handed_in", [".json"]),
    ):
        # The first attempt gets no answer; then the worker has the other token.
        results.pattern, results.count = RESULT, 0
        results.unreachable = lambda number, token=token: number == 0 or token == WORKER_TOKEN  # type: ignore[misc]
        root = tmp_path / error.__name__
        root.mkdir()
        with structlog.testing.capture_logs() as logs, pytest.raises(error):
            make_worker(
                coordinator.url,
                cache_root,
                models_root=root,
                token=lambda token=token: token if results.count else WORKER_TOKEN,
                give_up_after=1.0,
            ).run()
        assert event in [line["event"] for line in logs]
        assert [path.suffix for path in root.glob(".unreported/*")] == kept


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


def test_a_newer_worker_may_have_written_more(
    kept: Path, coordinator: LiveCoordinator, caller: CoordinatorClient
) -> None:
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "more": 1}))
    report_unreported(caller, kept.parent, coordinator.url)
    assert coordinator.outcomes() == ["done"]


def test_without_a_folder_the_worker_says_that_the_result_is_lost(
    coordinator: LiveCoordinator, cache_root: Path, tmp_path: Path
) -> None:
    unreported_folder(tmp_path).touch()
    coordinator.create_study(workers_per_trial=2)
    results = coordinator.interception
    results.pattern, results.unreachable = RESULT, lambda number: True
    for root, reasons in ((None, 0), (tmp_path, 1)):
        results.count = 0
        with structlog.testing.capture_logs() as logs, when(lambda: results.count >= 2, terminate):
            assert make_worker(coordinator.url, cache_root, models_root=root).run() == EXIT_TRY_AGAIN
        (lost,) = [line for line in logs if line["event"] == "result_not_handed_in"]
        assert lost["kept"] is None
        assert [line["event"] for line in logs].count("result_not_kept") == reasons


# --- Files that are not reported ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unreported(shared_client: httpx.Client) -> Iterator[UnreportedResult]:
    """A finished fold that its coordinator has not recorded, before and after the tests."""
    shared = LiveCoordinator(shared_client, None, None)  # type: ignore[arg-type]
    shared.create_study()
    with Connection(shared.url, WORKER_TOKEN, give_up_after=0) as connection:
        first = CoordinatorClient(connection, WorkerInfo(id="worker-first", name="first", device="cpu"))
        task = first.claim(
            study="s", caches=[FINGERPRINT], plans=[ComputePlan()], threads=1, keeps_models=False
        )
    assert task is not None
    result = make_result(task, [0] * len(task.test_clips))
    yield UnreportedResult(coordinator=shared.url, lease=task.lease, result=result)
    assert shared.call("GET", "/studies/s")["folds_done"] == 0


@pytest.fixture
def left(unreported: UnreportedResult, tmp_path: Path) -> Path:
    return keep_result(unreported_folder(tmp_path), unreported)


def report_all(unreported: UnreportedResult, folder: Path, token: str = WORKER_TOKEN) -> list[str]:
    """The events of the next worker."""
    with (
        Connection(unreported.coordinator, token, give_up_after=0) as connection,
        structlog.testing.capture_logs() as logs,
    ):
        client = CoordinatorClient(connection, WorkerInfo(id="worker-next", name="next", device="cpu"))
        report_unreported(client, folder, unreported.coordinator)
    return events(logs)


def test_a_refused_token_keeps_it(unreported: UnreportedResult, left: Path) -> None:
    assert report_all(unreported, left.parent, token="wrong") == ["unreported_result_not_handed_in"]
    assert left.exists()


def test_damaged_files_are_moved_aside(unreported: UnreportedResult, left: Path) -> None:
    for number, content in enumerate((b"", b"\xff\xfe", b"{}", left.read_bytes()[:-10])):
        left.with_name(f"{number}.json").write_bytes(content)
    left.unlink()
    assert report_all(unreported, left.parent) == ["unreported_result_damaged"] * 4
    assert report_all(unreported, left.parent) == []
    assert [path.suffix for path in left.parent.iterdir()] == [".damaged"] * 4


def test_old_files_are_deleted(unreported: UnreportedResult, left: Path) -> None:
    damaged, partial, other = (left.with_name(name) for name in ("a.damaged", "b.partial", "mine.txt"))
    for path in (damaged, partial, other):
        path.touch()
    for path in (left, damaged, partial, other):
        os.utime(path, (0, time.time() - KEPT_DAYS * 86_400 - 60))
    assert report_all(unreported, left.parent) == ["unreported_result_too_old"] * 3
    assert list(left.parent.iterdir()) == [other]


def test_what_a_coordinator_calls_a_lease_is_no_path(unreported: UnreportedResult, tmp_path: Path) -> None:
    hostile = unreported.lease.model_copy(update={"id": "../../evil"})
    folder = tmp_path / "new"
    file = keep_result(folder, unreported.model_copy(update={"lease": hostile}))
    assert list(folder.iterdir()) == [file]
