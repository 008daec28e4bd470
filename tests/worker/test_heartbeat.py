"""The heartbeat of one lease against a real coordinator: renewal, stall, commands, a lost coordinator."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from client.connection import Connection
from coordinator.settings import CoordinatorSettings
from services.contracts import ComputePlan, Lease, WorkerInfo
from tests.harness.coordinator_harness import wait_until
from tests.harness.served_app import WORKER_TOKEN
from tests.harness.tiny_cache import FINGERPRINT
from tests.worker.conftest import LiveCoordinator
from worker.coordinator_client import CoordinatorClient
from worker.heartbeat import HeartbeatThread

STALL_SECONDS = 1.0


@pytest.fixture
def settings(settings: CoordinatorSettings) -> CoordinatorSettings:
    return replace(settings, stall_seconds=STALL_SECONDS)


@pytest.fixture
def worker(coordinator: LiveCoordinator) -> Iterator[CoordinatorClient]:
    with Connection(coordinator.url, WORKER_TOKEN, give_up_after=30.0) as connection:
        yield CoordinatorClient(connection, WorkerInfo(id=str(uuid.uuid4()), name="w", device="cpu"))


@pytest.fixture
def lease(coordinator: LiveCoordinator, worker: CoordinatorClient) -> Lease:
    """The lease of the first fold of a study; its heartbeats are counted from here."""
    coordinator.create_study()
    assignment = worker.claim(study="s", caches=[FINGERPRINT], plans=[ComputePlan()])
    assert assignment is not None
    coordinator.interception.pattern = "POST /api/v1/leases/.*/heartbeat"
    return assignment.lease


def row(coordinator: LiveCoordinator) -> Any:
    """Expiry, outcome, epoch and step of the only lease."""
    (found,) = coordinator.query("SELECT expires_at, outcome, epoch, step FROM foldwise.leases")
    return found


def expiry(coordinator: LiveCoordinator) -> datetime:
    expires_at: datetime = row(coordinator)[0]
    return expires_at


def test_a_lease_is_renewed_while_the_training_loop_makes_progress(
    coordinator: LiveCoordinator, worker: CoordinatorClient, lease: Lease
) -> None:
    granted = expiry(coordinator)
    with HeartbeatThread(worker, lease) as heartbeat:
        heartbeat.progress(1, 7, 0.5)
        wait_until(lambda: row(coordinator)[1:] == (None, 1, 7))
        first = expiry(coordinator)
        heartbeat.progress(2, 8, None)
        wait_until(lambda: row(coordinator)[1:] == (None, 2, 8))
    assert granted < first < expiry(coordinator)
    assert (heartbeat.abandoned, heartbeat.drained) == (False, False)


def test_no_heartbeat_follows_the_end_of_the_fold(
    coordinator: LiveCoordinator, worker: CoordinatorClient, lease: Lease
) -> None:
    with HeartbeatThread(worker, lease):
        wait_until(lambda: coordinator.interception.count)
    count = coordinator.interception.count
    time.sleep(2 * lease.heartbeat_seconds)
    assert coordinator.interception.count == count


def test_the_end_of_a_fold_does_not_wait_for_the_next_heartbeat(
    worker: CoordinatorClient, lease: Lease
) -> None:
    started = time.monotonic()
    with HeartbeatThread(worker, lease.model_copy(update={"heartbeat_seconds": 60.0})):
        pass
    assert time.monotonic() - started < 10


def test_a_loop_that_hangs_loses_its_lease_and_gets_it_back_with_the_next_step(
    coordinator: LiveCoordinator, worker: CoordinatorClient, lease: Lease
) -> None:
    with HeartbeatThread(worker, lease) as heartbeat:
        heartbeat.progress(1, 7, None)
        wait_until(lambda: row(coordinator)[3] == 7)
        stalled = coordinator.interception.count + int(2 * STALL_SECONDS / lease.heartbeat_seconds)
        wait_until(lambda: coordinator.interception.count > stalled)
        last = expiry(coordinator)
        wait_until(lambda: coordinator.interception.count > stalled + 2)
        assert expiry(coordinator) == last, "the thread lives, but the loop makes no step"
        coordinator.expire_leases()
        wait_until(lambda: row(coordinator)[1] == "lapsed")
        heartbeat.progress(1, 8, None)
        wait_until(lambda: row(coordinator)[1:] == (None, 1, 8))
    assert not heartbeat.abandoned


def test_a_fold_of_a_study_that_was_stopped_is_abandoned(
    coordinator: LiveCoordinator, worker: CoordinatorClient, lease: Lease
) -> None:
    with HeartbeatThread(worker, lease) as heartbeat:
        coordinator.call("POST", "/studies/s/stop")
        wait_until(lambda: heartbeat.abandoned)
        assert not heartbeat.drained
        count = coordinator.interception.count
        time.sleep(2 * lease.heartbeat_seconds)
        assert coordinator.interception.count == count, "nothing is left to renew"


@pytest.mark.parametrize("now", [True, False])
def test_only_a_worker_that_is_drained_now_is_told_by_its_heartbeat(
    coordinator: LiveCoordinator, worker: CoordinatorClient, lease: Lease, now: bool
) -> None:
    with HeartbeatThread(worker, lease) as heartbeat:
        coordinator.call("POST", f"/workers/w/drain?now={now}")
        beats = coordinator.interception.count
        wait_until(lambda: heartbeat.drained or coordinator.interception.count > beats + 2)
    assert (heartbeat.drained, heartbeat.abandoned) == (now, False)


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_heartbeats_go_on_after_the_coordinator_was_unreachable(
    coordinator: LiveCoordinator, worker: CoordinatorClient, lease: Lease, lost: str
) -> None:
    beats = coordinator.interception
    if lost == "request":
        beats.unreachable = lambda number: number < 3
    else:
        beats.answer_lost = lambda number: number < 3
    with HeartbeatThread(worker, lease) as heartbeat:
        wait_until(lambda: beats.count == 3)
        heartbeat.progress(1, 7, None)
        wait_until(lambda: row(coordinator)[1:] == (None, 1, 7))
    assert (heartbeat.abandoned, heartbeat.drained) == (False, False)


def test_a_heartbeat_without_a_coordinator_does_not_hold_up_the_fold(lease: Lease) -> None:
    info = WorkerInfo(id=str(uuid.uuid4()), name="w", device="cpu")
    started = time.monotonic()
    with Connection("http://127.0.0.1:1", WORKER_TOKEN, give_up_after=600.0) as connection:
        with HeartbeatThread(CoordinatorClient(connection, info), lease) as heartbeat:
            time.sleep(2 * lease.heartbeat_seconds)
        assert (heartbeat.abandoned, heartbeat.drained) == (False, False)
    assert time.monotonic() - started < 10
