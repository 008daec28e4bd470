"""A study that fails or is large does not hold up the others, and says what is wrong with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError

from coordinator import optimizer
from coordinator.leader import asking, projecting
from coordinator.leader.projecting import FOLDS_AT_ONCE
from coordinator.optimizer import Search
from coordinator.scheduling import failures
from coordinator.store.database import connect
from coordinator.store.studies import get_study
from coordinator.store.troubles import study_troubles
from coordinator.studies import life
from coordinator.studies.deletion import delete_study
from services.contracts import Failure, TrialState
from tests.harness.coordinator_harness import Harness, LeaderWithoutOptuna, SteppedLeader, key_of, wait_until
from tests.harness.optuna_projection import load_projected, optuna_storage


def troubles(harness: Harness, name: str) -> tuple[str, ...]:
    with harness.sessions() as session:
        return study_troubles(session, get_study(session, name))


class BrokenSearch(Search):
    """Suggests nothing for a study of seed 13."""

    broken = True

    def suggest(self, *given: Any) -> Any:
        if BrokenSearch.broken and self._spec.seed == 13:
            raise MemoryError("Unable to allocate 7.28 TiB")
        return super().suggest(*given)


@pytest.fixture
def broken_search(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(asking, "Search", BrokenSearch)
    # Without the pauses between two attempts.
    monkeypatch.setattr("coordinator.leader.failing.MAX_PAUSE_SECONDS", 0.0)
    yield
    BrokenSearch.broken = True


@pytest.mark.usefixtures("broken_search")
def test_a_study_that_fails_again_and_again_says_why_and_the_others_go_on(harness: Harness) -> None:
    harness.create(name="broken", seed=13)
    harness.create(name="quiet")
    assert harness.study("quiet").trials[TrialState.READY] == 2
    assert not any("failed" in trouble for trouble in troubles(harness, "broken"))
    for _ in range(2):
        harness.leader.round()
    sentence = troubles(harness, "broken")[0]
    assert "failed 4 times" in sentence
    assert sentence.endswith("to suggest its next trial: Unable to allocate 7.28 TiB")
    assert not any("failed" in trouble for trouble in troubles(harness, "quiet"))
    # Another leader clears what this one recorded.
    BrokenSearch.broken = False
    harness.leader = SteppedLeader(harness.engine, harness.settings)
    harness.leader.round()
    assert not any("failed" in trouble for trouble in troubles(harness, "broken"))
    assert harness.study("broken").trials[TrialState.READY] == 2


def test_a_study_that_fails_is_tried_less_and_less_often(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "Search", BrokenSearch)
    monkeypatch.setattr("coordinator.leader.failing.FIRST_PAUSE_SECONDS", 50.0)
    harness.create(name="broken", seed=13)
    for _ in range(20):
        harness.leader.round()
    with harness.engine.connect() as connection:
        assert connection.scalar(text("SELECT failures FROM foldwise.failing_duties")) == 1


def test_a_deleted_study_takes_its_failures_with_it(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "Search", BrokenSearch)
    harness.create(name="broken", seed=13)
    with harness.sessions.begin() as session:
        life.stop(session, "broken", "enough")
        delete_study(session, "broken", "broken")
    with harness.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM foldwise.failing_duties")) == 0


@pytest.mark.usefixtures("projection")
def test_a_projection_that_takes_long_holds_up_no_lease_and_no_trial(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(*given: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        optimizer.project(*given)

    harness.create(name="large")
    held = harness.must_claim(study="large")
    monkeypatch.setattr(projecting, "project", slowly)
    leader = SteppedLeader(harness.engine, harness.settings)
    with harness.engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.leader SET expires_at = clock_timestamp()"))
    harness.report(held, more=False)
    leader.start()
    try:
        assert begun.wait(30)
        other = harness.must_claim("w2", study="large")
        with harness.engine.begin() as connection:
            connection.execute(text("UPDATE foldwise.leases SET expires_at = clock_timestamp()"))
        wait_until(lambda: harness.folds(other.trial, "large")[other.fold].state == "pending")
    finally:
        go_on.set()
        leader.stop()


@pytest.mark.usefixtures("projection")
def test_a_large_study_is_projected_in_parts_and_a_small_one_between_them(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noting(session: Any, study: Any, space: Any, records: Any) -> None:
        order.extend(f"{study.id}:{record.number}" for record in records)
        optimizer.project(session, study, space, records)

    harness.leader = LeaderWithoutOptuna(harness.engine, harness.settings)
    harness.create(name="large", trials=2)
    harness.create(name="small", trials=2)
    monkeypatch.setattr(projecting, "FOLDS_AT_ONCE", 5)
    monkeypatch.setattr(projecting, "project", noting)
    assert FOLDS_AT_ONCE > 5
    leader = SteppedLeader(harness.engine, harness.settings)
    leader.round()
    assert order == ["1:0", "2:0", "1:1", "2:1"]
    for name in ("large", "small"):
        projected = load_projected(harness.settings.database_url, name)
        assert [trial.params for trial in projected.trials] == [
            harness.trial(number, name).parameters for number in range(2)
        ]


def test_repeated_failures_of_machines_and_missing_workers_are_told(harness: Harness) -> None:
    harness.create()
    assert any("no worker made contact in the last 5 minutes" in trouble for trouble in troubles(harness, "s"))
    for _ in range(3):
        assert not any("machines" in trouble for trouble in troubles(harness, "s"))
        assignment = harness.must_claim()
        with harness.sessions.begin() as session:
            failure = Failure(kind="environment", message="no CUDA device")
            failures.fail(session, key_of(assignment.lease), failure)
    (told,) = troubles(harness, "s")
    assert told == (
        "workers could not run 3 folds in the last 15 minutes because of their machines; "
        "w1 said: no CUDA device"
    )
    with harness.sessions.begin() as session:
        life.stop(session, "s", "enough")
    assert troubles(harness, "s") == ()


@pytest.mark.usefixtures("projection")
def test_a_study_that_cannot_be_deleted_in_optuna_keeps_no_other_from_being_projected(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete_some = optimizer.delete_some
    failed = 0

    def fail(session: Any, name: str) -> bool:
        nonlocal failed
        if name != "gone":
            return delete_some(session, name)
        failed += 1
        raise DataError("DELETE", {}, Exception("canceling statement due to statement timeout"))

    harness.create(name="gone", start=False)
    with harness.sessions.begin() as session:
        delete_study(session, "gone", "gone")
    monkeypatch.setattr(projecting, "delete_some", fail)
    harness.create(name="quiet")
    harness.leader.round()
    assert failed == 1, "it is tried again later"
    assert len(load_projected(harness.settings.database_url, "quiet").trials) == 2


@pytest.mark.usefixtures("projection")
def test_a_study_is_deleted_in_optuna_in_parts_from_its_end(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.optimizer.projection.TRIALS_DELETED_AT_ONCE", 2)
    harness.leader = SteppedLeader(harness.engine, replace(harness.settings, ask_ahead=5))
    harness.create(name="s", trials=5)
    with harness.sessions.begin() as session:
        assert optimizer.delete_some(session, "s")
    kept = load_projected(harness.settings.database_url, "s").trials
    assert [trial.number for trial in kept] == [0, 1, 2]
    with harness.sessions.begin() as session:
        assert optimizer.delete_some(session, "s")
        assert not optimizer.delete_some(session, "s")
        assert not optimizer.delete_some(session, "s")
    with optuna_storage(harness.settings.database_url) as storage:
        assert storage.get_all_studies() == []


def test_a_trial_that_somebody_keeps_locked_holds_up_no_other_lease(harness: Harness) -> None:
    harness.create(trials=3)
    held = [harness.must_claim(f"w{number}") for number in range(2)]
    with harness.engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.leases SET expires_at = clock_timestamp()"))
    impatient = connect(harness.settings.database_url, lock_seconds=0.1)
    leader = LeaderWithoutOptuna(impatient, harness.settings)
    with harness.engine.begin() as keeping:
        keeping.execute(text("SELECT 1 FROM foldwise.trials WHERE number = 0 FOR UPDATE"))
        leader.round()
        assert harness.folds(0)[held[0].fold].state == "leased"
        assert harness.folds(1)[held[1].fold].state == "pending"
        keeping.execute(text("SELECT 1 FROM foldwise.studies FOR UPDATE"))
        leader.round()
    leader.round()
    assert harness.folds(0)[held[0].fold].state == "pending"
    with harness.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM foldwise.failing_duties")) == 0
    impatient.dispose()
