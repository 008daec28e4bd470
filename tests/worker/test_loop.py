"""A worker in this process against a real coordinator: signals, failures, and the exit code of each end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from services.contracts import FoldAssignment
from services.errors import (
    EXIT_DONE,
    EXIT_PERMANENT,
    EXIT_TRY_AGAIN,
    EXIT_UNAVAILABLE_HERE,
    EXIT_USAGE,
    CacheMismatch,
    CacheUnreadable,
    FoldwiseError,
    InvalidInput,
    MachineUnusable,
    PlanNotSound,
    TokenRefused,
    Unavailable,
)
from tests.harness.coordinator_harness import Harness, wait_until
from tests.harness.served_app import WORKER_TOKEN
from tests.harness.tiny_cache import FINGERPRINT, write_tiny_cache
from tests.worker.conftest import LiveCoordinator
from worker.loop import Worker
from worker.settings import WorkerSettings

ENDLESS = 1000
"""Epochs of a fold that is still being trained whenever a test looks: the most that a study may have."""

PROMPT_SECONDS = 10.0
"""Far less than a long poll of 20 s or a fold of 1000 epochs takes; far more than an interrupted one."""

CLAIM = "POST /api/v1/claims"
RESULT, FAIL = r"PUT /api/v1/leases/.*/result", r"POST /api/v1/leases/.*/fail"
HEARTBEAT, RELEASE = r"POST /api/v1/leases/.*/heartbeat", r"POST /api/v1/leases/.*/release"


pytestmark = pytest.mark.usefixtures("workers_in_this_process")


def make_worker(url: str, cache_root: Path, **given: Any) -> Worker:
    default = {"token": WORKER_TOKEN, "name": "w", "device": "cpu", "threads": 1, "give_up_after": 60.0}
    return Worker(WorkerSettings(url=url, cache_root=cache_root, **{**default, **given}))


@contextmanager
def when(condition: Callable[[], object], action: Callable[[], object]) -> Iterator[None]:
    """Call `action` in a thread once `condition` holds; fail if it never does, or if the action fails."""
    errors: list[Exception] = []
    done = threading.Event()

    def watch() -> None:
        try:
            deadline = time.monotonic() + 30
            while not condition():
                assert time.monotonic() < deadline, "waited in vain"
                if done.wait(0.01):
                    raise AssertionError("the worker ended first")
            action()
        except Exception as error:
            errors.append(error)
            if not done.is_set():
                terminate()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if errors:
        raise errors[0]


def terminate(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


class HookedLoss:
    """Torch's loss. Each call, which is one training step, first calls the next hook; the last one repeats."""

    def __init__(self, *hooks: Callable[[], object]) -> None:
        self._hooks, self._loss = list(hooks), F.cross_entropy

    def __call__(self, *arguments: Any, **given: Any) -> Any:
        hook = self._hooks.pop(0) if len(self._hooks) > 1 else self._hooks[0]
        hook()
        return self._loss(*arguments, **given)


# --- Until the study is over ------------------------------------------------------------------------------


def test_a_worker_runs_every_fold_and_exits_with_0(coordinator: LiveCoordinator, cache_root: Path) -> None:
    coordinator.create_study()
    assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_DONE
    assert coordinator.outcomes() == ["done", "done"]
    study = coordinator.call("GET", "/studies/s")
    assert (study["state"], study["folds_done"]) == ("complete", 2)


def test_a_worker_touches_its_alive_file_while_it_waits_and_while_it_trains(
    coordinator: LiveCoordinator, cache_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = tmp_path / "alive"

    def touches_it_again() -> None:
        alive.unlink()
        wait_until(alive.exists)
        terminate()

    monkeypatch.setattr("worker.loop.ALIVE_INTERVAL_SECONDS", 0.0)
    with when(alive.exists, terminate):
        assert make_worker(coordinator.url, cache_root, alive_file=alive).run() == EXIT_TRY_AGAIN
    coordinator.create_study(epochs=ENDLESS)
    with when(coordinator.trains, touches_it_again):
        assert make_worker(coordinator.url, cache_root, alive_file=alive).run() == EXIT_TRY_AGAIN
    assert coordinator.outcomes() == ["released"], "it was touched during the first fold, not after it"


def test_a_claim_whose_answer_came_too_late_is_made_again(
    coordinator: LiveCoordinator, cache_root: Path
) -> None:
    def expire(number: int) -> None:
        if number == 0:
            coordinator.expire_leases()
            wait_until(lambda: coordinator.outcomes() == ["lapsed"])

    coordinator.create_study()
    claims = coordinator.interception
    claims.pattern, claims.after, claims.answer_lost = CLAIM, expire, lambda number: number == 0
    assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_DONE
    # The second claim repeated the key of the first and was refused; the third had a new key.
    assert coordinator.outcomes() == ["lapsed", "done", "done"]
    assert claims.count == 4


# --- Signals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_fold_releases_it_and_exits_with_75(
    coordinator: LiveCoordinator, cache_root: Path, number: int
) -> None:
    coordinator.create_study(epochs=ENDLESS)
    with when(coordinator.trains, lambda: terminate(number)):
        assert make_worker(coordinator.url, cache_root).run() == EXIT_TRY_AGAIN
    assert coordinator.outcomes() == ["released"]
    assert coordinator.query("SELECT DISTINCT state FROM foldwise.folds") == [("pending",)]


def test_a_signal_ends_the_wait_for_a_fold_at_once(coordinator: LiveCoordinator, cache_root: Path) -> None:
    def seen() -> bool:
        return bool(coordinator.query("SELECT 1 FROM foldwise.workers"))

    started = time.monotonic()
    with when(seen, terminate):
        assert make_worker(coordinator.url, cache_root).run() == EXIT_TRY_AGAIN
    assert time.monotonic() - started < PROMPT_SECONDS


def test_a_signal_during_a_report_lets_the_answer_arrive(
    coordinator: LiveCoordinator, cache_root: Path
) -> None:
    coordinator.create_study()
    results = coordinator.interception
    results.pattern, results.before = RESULT, lambda number: terminate()
    with structlog.testing.capture_logs() as events:
        assert make_worker(coordinator.url, cache_root).run() == EXIT_TRY_AGAIN
    assert "fold_done" in [event["event"] for event in events]
    assert coordinator.outcomes() == ["done", "released"], "the answer brought the lease of the next fold"
    assert coordinator.call("GET", "/studies/s")["folds_done"] == 1


def test_a_signal_ends_a_report_that_nobody_answers(coordinator: LiveCoordinator, cache_root: Path) -> None:
    coordinator.create_study()
    results = coordinator.interception
    results.pattern, results.unreachable = RESULT, lambda number: True
    started = time.monotonic()
    with when(lambda: results.count >= 2, terminate):
        assert make_worker(coordinator.url, cache_root).run() == EXIT_TRY_AGAIN
    assert time.monotonic() - started < PROMPT_SECONDS
    assert coordinator.outcomes() == [None], "its lease expires by itself"


def test_a_signal_ends_the_worker_although_nobody_answers_its_release(
    coordinator: LiveCoordinator, cache_root: Path
) -> None:
    coordinator.create_study(epochs=ENDLESS)
    releases = coordinator.interception
    releases.pattern, releases.unreachable = RELEASE, lambda number: True
    with when(coordinator.trains, terminate):
        assert make_worker(coordinator.url, cache_root).run() == EXIT_TRY_AGAIN
    assert (releases.count, coordinator.outcomes()) == (1, [None]), "its lease expires by itself"


def test_a_signal_ends_the_wait_for_a_coordinator(coordinator: LiveCoordinator, cache_root: Path) -> None:
    claims = coordinator.interception
    claims.pattern, claims.unreachable = CLAIM, lambda number: True
    started = time.monotonic()
    with when(lambda: claims.count >= 3, terminate):
        assert make_worker(coordinator.url, cache_root).run() == EXIT_TRY_AGAIN
    assert time.monotonic() - started < PROMPT_SECONDS


def let_another_run_it(coordinator: LiveCoordinator, harness: Harness) -> None:
    """Expire the lease of the worker under test, and let another one report its fold."""

    def claimed() -> FoldAssignment | None:
        # A heartbeat that comes before the leader's round renews the lease.
        coordinator.expire_leases()
        return harness.claim("other")

    wait_until(lambda: (other := claimed()) and harness.report(other, more=False))


# --- The coordinator ends a fold or the worker ------------------------------------------------------------


def test_a_fold_that_was_granted_again_is_abandoned_and_the_next_one_claimed(
    coordinator: LiveCoordinator, harness: Harness, cache_root: Path
) -> None:
    def trains_the_next_fold() -> bool:
        return bool(
            coordinator.query("SELECT 1 FROM foldwise.leases WHERE fold = 1 AND outcome IS NULL AND step > 0")
        )

    coordinator.create_study(epochs=ENDLESS)
    reports = coordinator.interception
    reports.pattern = f"{RESULT}|{FAIL}"
    with (
        when(coordinator.trains, lambda: let_another_run_it(coordinator, harness)),
        when(trains_the_next_fold, lambda: coordinator.call("POST", "/studies/s/stop")),
    ):
        assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_DONE
    outcomes = coordinator.query("SELECT fold, outcome, worker_id = 'worker-other' FROM foldwise.leases")
    assert sorted(outcomes) == [(0, "done", True), (0, "lapsed", False), (1, "abandoned", False)]
    assert reports.count == 0, "both folds end during the training, and neither is a failure"


def test_a_result_that_is_refused_is_dropped_and_the_worker_goes_on(
    coordinator: LiveCoordinator, harness: Harness, cache_root: Path
) -> None:
    def count_it_first(number: int) -> None:
        if number == 0:
            let_another_run_it(coordinator, harness)

    coordinator.create_study()
    reports = coordinator.interception
    reports.pattern, reports.before = f"{RESULT}|{FAIL}", count_it_first
    assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_DONE
    assert reports.count == 2, "one result of each fold, and no failure"
    assert coordinator.call("GET", "/studies/s")["folds_done"] == 2


def test_the_result_of_a_study_that_was_deleted_is_dropped_and_the_worker_goes_on(
    coordinator: LiveCoordinator, cache_root: Path
) -> None:
    def delete_study(number: int) -> None:
        coordinator.call("POST", "/studies/s/pause?now=true")
        coordinator.call("DELETE", "/studies/s?confirm=s")

    coordinator.create_study()
    results = coordinator.interception
    results.pattern, results.before = RESULT, delete_study
    with (
        structlog.testing.capture_logs() as events,
        when(lambda: "result_refused" in [event["event"] for event in events], terminate),
    ):
        assert make_worker(coordinator.url, cache_root).run() == EXIT_TRY_AGAIN


def test_a_worker_that_is_drained_now_releases_its_fold_and_exits_with_75(
    coordinator: LiveCoordinator, cache_root: Path
) -> None:
    coordinator.create_study(epochs=ENDLESS)
    with when(coordinator.trains, lambda: coordinator.call("POST", "/workers/w/drain?now=true")):
        assert make_worker(coordinator.url, cache_root).run() == EXIT_TRY_AGAIN
    assert coordinator.outcomes() == ["released"]


def test_a_drained_worker_finishes_its_fold_and_exits_with_75(
    coordinator: LiveCoordinator, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = coordinator.interception
    beats.pattern = HEARTBEAT

    def drain() -> None:
        coordinator.call("POST", "/workers/w/drain")
        answered = beats.count + 2
        wait_until(lambda: beats.count >= answered)

    monkeypatch.setattr(F, "cross_entropy", HookedLoss(drain))
    coordinator.create_study()
    assert make_worker(coordinator.url, cache_root).run() == EXIT_TRY_AGAIN
    assert coordinator.outcomes() == ["done"]


# --- Failures ---------------------------------------------------------------------------------------------


def sick_gpu() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def too_large() -> None:
    torch.empty(2**46)


def too_large_for_cudnn() -> None:
    raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")


def bad_shape() -> None:
    raise ValueError("a shape does not fit")


def long_message() -> None:
    raise ValueError("x" * 10_000)


def nothing() -> None:
    pass


def test_a_sick_device_releases_the_fold_and_ends_the_worker_at_its_third_failure(
    coordinator: LiveCoordinator, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "cross_entropy", HookedLoss(sick_gpu))
    coordinator.create_study()
    with pytest.raises(MachineUnusable, match=r"3 consecutive folds failed on this worker: ") as broken:
        make_worker(coordinator.url, cache_root, study="s").run()
    assert broken.value.exit_code == EXIT_UNAVAILABLE_HERE
    assert coordinator.outcomes() == ["environment"] * 3
    assert coordinator.call("GET", "/studies/s")["trials"]["running"] == 1, "the trial is not at fault"


@pytest.mark.parametrize(("between", "outcome"), [(nothing, "done"), (bad_shape, "trial")])
def test_only_consecutive_failures_of_its_device_end_the_worker(
    coordinator: LiveCoordinator,
    cache_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    between: Callable[[], None],
    outcome: str,
) -> None:
    hooks = (sick_gpu, sick_gpu, between, sick_gpu, sick_gpu, nothing)
    monkeypatch.setattr(F, "cross_entropy", HookedLoss(*hooks))
    coordinator.create_study()
    assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_DONE
    failed = ["environment", "environment"]
    assert coordinator.outcomes()[:6] == [*failed, outcome, *failed, "done"]


def test_a_failure_that_is_reported_too_late_is_dropped_and_the_worker_goes_on(
    coordinator: LiveCoordinator, harness: Harness, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count_it_first(number: int) -> None:
        let_another_run_it(coordinator, harness)

    monkeypatch.setattr(F, "cross_entropy", HookedLoss(bad_shape, nothing))
    coordinator.create_study()
    failures = coordinator.interception
    failures.pattern, failures.before = FAIL, count_it_first
    assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_DONE
    assert failures.count == 1
    assert coordinator.call("GET", "/studies/s")["folds_done"] == 2


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (bad_shape, "ValueError: a shape does not fit"),
        (too_large, "batches of 16 clips of 2 x 16 x 16 at width 1 do not fit the memory of cpu"),
        (too_large_for_cudnn, "batches of 16 clips of 2 x 16 x 16 at width 1 do not fit the memory of cpu"),
        (long_message, "ValueError: xxx"),
    ],
)
def test_a_configuration_that_cannot_be_trained_fails_its_trial(
    coordinator: LiveCoordinator,
    cache_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[], None],
    words: str,
) -> None:
    monkeypatch.setattr(F, "cross_entropy", HookedLoss(fail))
    coordinator.create_study()
    assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_DONE
    # The coordinator asks twice: the first report may come from a broken worker.
    assert coordinator.outcomes() == ["trial"] * 2
    (trial,) = coordinator.call("GET", "/studies/s/trials")
    assert trial["state"] == "failed"
    assert trial["end_reason"].startswith(words)


def test_a_broken_cache_ends_the_worker_for_good(coordinator: LiveCoordinator, tmp_path: Path) -> None:
    write_tiny_cache(tmp_path)
    arrays = tmp_path / "tiny" / FINGERPRINT / "clips.npy"
    arrays.write_bytes(arrays.read_bytes()[:100])
    coordinator.create_study()
    with pytest.raises(CacheMismatch, match="3 consecutive folds failed") as broken:
        make_worker(coordinator.url, tmp_path).run()
    assert broken.value.exit_code == EXIT_PERMANENT
    assert coordinator.outcomes() == ["environment"] * 3


# --- A start that cannot work -----------------------------------------------------------------------------


def test_a_refused_token_ends_the_worker_for_good(coordinator: LiveCoordinator, cache_root: Path) -> None:
    with pytest.raises(TokenRefused) as refused:
        make_worker(coordinator.url, cache_root, token="guess").run()
    assert refused.value.exit_code == EXIT_PERMANENT


def test_a_missing_cache_ends_the_worker_of_a_named_study_for_good(
    coordinator: LiveCoordinator, tmp_path: Path
) -> None:
    coordinator.create_study()
    with pytest.raises(CacheMismatch, match="cannot read") as missing:
        make_worker(coordinator.url, tmp_path, study="s").run()
    assert missing.value.exit_code == EXIT_PERMANENT


def test_a_coordinator_that_stays_unreachable_is_worth_another_try(cache_root: Path) -> None:
    with pytest.raises(Unavailable) as gone:
        make_worker("http://127.0.0.1:1", cache_root, give_up_after=0.3).run()
    assert gone.value.exit_code == EXIT_TRY_AGAIN


def test_a_folder_of_caches_that_this_machine_cannot_read_is_for_another_machine(
    coordinator: LiveCoordinator, tmp_path: Path
) -> None:
    # A loop of links fails for root too, as a dead mount does.
    root = tmp_path / "caches"
    root.symlink_to(root)
    with pytest.raises(CacheUnreadable, match=f"cannot read {root}: Too many .*; check the mount") as unread:
        make_worker(coordinator.url, root).run()
    assert unread.value.exit_code == EXIT_UNAVAILABLE_HERE


@pytest.mark.parametrize("broken", ["tiny", f"tiny/{FINGERPRINT}/manifest.json"])
def test_a_cache_that_this_machine_cannot_read_stops_only_the_workers_that_need_it(
    coordinator: LiveCoordinator, tmp_path: Path, broken: str
) -> None:
    write_tiny_cache(tmp_path)
    path = tmp_path / broken
    path.rename(tmp_path / "aside")
    path.symlink_to(path)
    coordinator.create_study()
    with pytest.raises(CacheUnreadable, match=f"cannot read {path}: ") as unread:
        make_worker(coordinator.url, tmp_path, study="s").run()
    assert unread.value.exit_code == EXIT_UNAVAILABLE_HERE
    with when(lambda: coordinator.interception.count, terminate):
        coordinator.interception.pattern, coordinator.interception.count = CLAIM, 0
        assert make_worker(coordinator.url, tmp_path).run() == EXIT_TRY_AGAIN


def test_a_plan_that_this_device_cannot_compute_is_for_another_machine(
    coordinator: LiveCoordinator, cache_root: Path
) -> None:
    coordinator.create_study(compute={"precision": "tf32"})
    with pytest.raises(PlanNotSound, match="use another device") as refused:
        make_worker(coordinator.url, cache_root, study="s").run()
    assert refused.value.exit_code == EXIT_UNAVAILABLE_HERE


@pytest.mark.parametrize(
    ("device", "kind", "code"),
    [("tpu", InvalidInput, EXIT_USAGE), ("cuda:99", MachineUnusable, EXIT_UNAVAILABLE_HERE)],
)
def test_a_device_that_is_not_there_is_bad_usage_or_for_another_machine(
    cache_root: Path, device: str, kind: type[FoldwiseError], code: int
) -> None:
    with pytest.raises(kind, match=f"--device '{device}'") as missing:
        make_worker("http://127.0.0.1:1", cache_root, device=device)
    assert missing.value.exit_code == code
