"""One coordinator leads at a time, and one that was replaced writes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import sessionmaker

from coordinator.leader.election import LEADER_SECONDS, STALL_SECONDS, Election, Fence, NotLeading
from coordinator.store.leadership import leadership
from tests.harness.coordinator_harness import Harness, SteppedLeader, wait_until


def expire(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.leader SET expires_at = clock_timestamp() - interval '10 s'"))


class Clock:
    """A clock that a test puts forward."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


def elected(engine: Engine, clock: Callable[[], float] = time.monotonic) -> Election:
    candidate = Election(engine, clock=clock)
    candidate.attempt()
    assert candidate.term is not None
    return candidate


def test_a_second_coordinator_leads_once_the_term_of_the_first_has_expired(engine: Engine) -> None:
    first = elected(engine)
    assert first.term is not None
    second = Election(engine)
    second.attempt()
    assert second.term is None
    first.attempt()
    assert first.term == 1
    expire(engine)
    second.attempt()
    assert second.term == 2
    first.attempt()
    assert first.term is None


def test_a_leader_that_renews_nothing_does_not_believe_that_it_leads(engine: Engine) -> None:
    clock = Clock()
    first = elected(engine, clock)
    clock.ahead = LEADER_SECONDS + 1
    assert first.term is None


def test_what_a_replaced_leader_writes_is_rolled_back(engine: Engine) -> None:
    sessions = sessionmaker(engine)
    first = elected(engine)
    assert first.term is not None
    fence = Fence(sessions, first.term)
    expire(engine)
    elected(engine)
    with pytest.raises(NotLeading, match="term 1"), fence.begin() as session:
        session.execute(text("DELETE FROM foldwise.outbox"))


def test_nobody_else_leads_while_a_fenced_transaction_runs_and_the_leader_still_renews(
    engine: Engine,
) -> None:
    first = elected(engine)
    assert first.term is not None
    second = Election(engine)
    done = threading.Event()

    def take() -> None:
        second.attempt()
        done.set()

    with Fence(sessionmaker(engine), first.term).begin():
        first.attempt()
        assert first.term == 1
        expire(engine)
        taking = threading.Thread(target=take)
        taking.start()

        def waits() -> bool:
            with engine.connect() as connection:
                blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                return bool(connection.scalar(text(blocked)))

        wait_until(waits)
        assert not done.is_set()
    taking.join()
    assert second.term == 2


def test_a_leader_whose_thread_hangs_gives_up(engine: Engine) -> None:
    clock = Clock()
    first = elected(engine, clock)
    first.record_pause(round_finished=True)
    clock.ahead += 2 * STALL_SECONDS
    first.attempt()
    assert first.term is not None, "a thread that waits for its next round does not hang"
    first.record_progress()
    for _ in range(4):
        clock.ahead += STALL_SECONDS / 5
        first.attempt()
        assert first.term is not None
    clock.ahead += STALL_SECONDS / 2
    first.attempt()
    assert first.term is None
    expire(engine)
    first.attempt()
    assert first.term is None, "it does not lead again while it hangs"
    first.record_progress()
    first.attempt()
    assert first.term is not None


@pytest.fixture
def leader(harness: Harness) -> Iterator[SteppedLeader]:
    leader = SteppedLeader(harness.engine, harness.settings)
    leader.start()
    wait_until(lambda: leader.is_leader)
    yield leader
    leader.stop()


def test_a_coordinator_that_stops_lets_another_lead_at_once(harness: Harness, leader: SteppedLeader) -> None:
    other = Election(harness.engine)
    other.attempt()
    assert other.term is None
    leader.stop()
    other.attempt()
    assert other.term is not None


def test_the_row_tells_of_a_missing_and_of_a_slow_leader(engine: Engine) -> None:
    sessions = sessionmaker(engine)
    first = elected(engine)
    with sessions() as session:
        assert leadership(session).trouble is None
    expire(engine)
    with sessions() as session:
        assert "no coordinator has led for 10 s" in (leadership(session).trouble or "")
    first.attempt()
    with engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.leader SET round_at = clock_timestamp() - interval '40 s'"))
    with sessions() as session:
        assert "last finished a round 40 s ago" in (leadership(session).trouble or "")
