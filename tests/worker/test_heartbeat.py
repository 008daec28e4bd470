"""The heartbeat of one lease against a real coordinator: renewal, stall, commands, a lost coordinator."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

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
    assignment = worker.claim(study="s", caches=[FINGERPRINT], plans=[ComputePlan()], threads=1)
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


def sends_heartbeats() -> bool:
    """Whether the thread that sends them still runs."""
    return "heartbeat" in {thread.name for thread in threading.enumerate()}


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


def test_no_heartbeat_is_in_transit_after_the_end_of_the_fold_or_follows_it(
    coordinator: LiveCoordinator, worker: CoordinatorClient, lease: Lease
) -> None:
    ended = threading.Event()
    # The first heartbeat is still in transit when the fold ends.
    coordinator.interception.before = lambda number: ended.wait(30)
    with HeartbeatThread(worker, lease):
        wait_until(lambda: coordinator.interception.count)
        assert sends_heartbeats()
    still_sends = sends_heartbeats()
    ended.set()
    assert not still_sends


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
        # Nothing is left to renew.
        wait_until(lambda: not sends_heartbeats())


@pytest.mark.parametrize("now", [True, False])
def test_only_a_worker_that_is_drained_now_is_told_by_its_heartbeat(
    coordinator: LiveCoordinator, worker: CoordinatorClient, lease: Lease, now: bool
) -> None:
    with HeartbeatThread(worker, lease) as heartbeat:
        coordinator.call("POST", f"/workers/w/drain?now={now}")
        beats = coordinator.interception.count
        wait_until(lambda: heartbeat.drained or coordinator.interception.count > beats + 2)
        wait_until(lambda: sends_heartbeats() is not now)
    assert (heartbeat.drained, heartbeat.abandoned) == (now, False)


@pytest.mark.parametrize("trouble", ["request lost", "answer lost", "refused"])
def test_heartbeats_go_on_after_some_were_lost_or_refused(
    coordinator: LiveCoordinator, worker: CoordinatorClient, lease: Lease, trouble: str
) -> None:
    beats, over = coordinator.interception, threading.Event()

    def change_secret(number: int) -> None:
        secret = lease.secret if over.is_set() else "another"
        coordinator.execute("UPDATE foldwise.leases SET secret = :secret", secret=secret)

    match trouble:
        case "request lost":
            beats.unreachable = lambda number: not over.is_set()
        case "answer lost":
            beats.answer_lost = lambda number: not over.is_set()
        case _:
            beats.before = change_secret
    with HeartbeatThread(worker, lease) as heartbeat:
        wait_until(lambda: beats.count >= 3)
        assert (heartbeat.abandoned, heartbeat.drained) == (False, False)
        over.set()
        heartbeat.progress(1, 7, None)
        wait_until(lambda: row(coordinator)[1:] == (None, 1, 7))
    assert (heartbeat.abandoned, heartbeat.drained) == (False, False)


@pytest.mark.parametrize("listens", [False, True])
def test_a_heartbeat_that_nobody_answers_does_not_hold_up_the_fold(lease: Lease, listens: bool) -> None:
    info = WorkerInfo(id=str(uuid.uuid4()), name="w", device="cpu")
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server, capture_logs() as events:
        url = f"http://127.0.0.1:{server.getsockname()[1] if listens else 1}"
        with Connection(url, WORKER_TOKEN, give_up_after=600.0) as connection:
            with HeartbeatThread(CoordinatorClient(connection, info), lease) as heartbeat:
                wait_until(lambda: [event for event in events if event["event"] == "heartbeat_failed"])
            assert (heartbeat.abandoned, heartbeat.drained) == (False, False)
    assert time.monotonic() - started < 10
