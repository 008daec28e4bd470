"""Who leads: a row with a term that rises with each new leader, and with an expiry of seconds."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from coordinator.store.conditions import seconds
from coordinator.store.tables import LeaderRow

log = structlog.get_logger()

LEADER_SECONDS = 15.0
"""Seconds after its last renewal at which leadership expires."""

RENEWAL_SECONDS = 2.0
"""Seconds between two renewals, and between two attempts of a coordinator that does not lead."""

STALL_SECONDS = 60.0
"""Seconds of a round without a finished step after which a coordinator does not lead: its thread hangs."""


class NotLeading(Exception):
    """This coordinator leads no longer; what it was doing is rolled back."""


class Fence:
    """Begins transactions that commit only if their term still leads."""

    def __init__(self, sessions: sessionmaker[Session], term: int) -> None:
        self.term = term
        self._sessions = sessions

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction during which no other coordinator can become the leader.

        Raises:
            NotLeading: another one already is.
        """
        with self._sessions.begin() as session:
            # Lets the holder renew the expiry, and makes a change of the term wait.
            held = select(LeaderRow.term).where(LeaderRow.term == self.term)
            if session.scalar(held.with_for_update(read=True, key_share=True)) is None:
                raise NotLeading(f"term {self.term} has ended")
            yield session


class Election(threading.Thread):
    """Takes the row when it has expired, and renews it unless the leader's thread hangs."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds and never goes backwards."""
        super().__init__(name="election", daemon=True)
        self._sessions = sessionmaker(engine)
        self._holder = uuid.uuid4().hex
        self._clock = clock
        self._term: int | None = None
        self._valid_until = -math.inf
        self._progress_at: float | None = None
        self._round_at = clock()
        self._stopping = threading.Event()
        self.on_elected: Callable[[], None] = lambda: None
        """Called when this coordinator has become the leader."""

    @property
    def term(self) -> int | None:
        """The term in which this coordinator leads; None if it does not."""
        return self._term if self._clock() < self._valid_until else None

    def record_progress(self) -> None:
        """Note that the leader's thread begins a round, or has finished a step of it."""
        self._progress_at = self._clock()

    def record_pause(self, *, round_finished: bool) -> None:
        """Note that the leader's thread waits for its next round; it cannot hang now."""
        self._progress_at = None
        if round_finished:
            self._round_at = self._clock()

    def run(self) -> None:
        """Renew or take the row until told to stop, then give it up."""
        while not self._stopping.is_set():
            try:
                self.attempt()
            except SQLAlchemyError as error:
                log.warning("leader_lost_database", error=str(error).splitlines()[0])
            except Exception:
                # If this thread ended, the service would get no more trials.
                log.exception("election_failed")
            self._stopping.wait(RENEWAL_SECONDS)
        try:
            self._give_up()
        except SQLAlchemyError as error:
            log.warning("leadership_not_given_up", error=str(error).splitlines()[0])

    def stop(self) -> None:
        """End the thread; another coordinator can lead at once."""
        self._stopping.set()
        self.join()

    def attempt(self, *, by_force: bool = False) -> None:
        """Renew this coordinator's leadership, or take it if it has expired.

        Args:
            by_force: take it even if it has not expired; for tests.
        """
        asked = self._clock()
        if self._progress_at is not None and asked - self._progress_at > STALL_SECONDS:
            # A coordinator whose thread hangs leads no more, also if nobody else does.
            log.error("leader_stalled", term=self._term, seconds=round(asked - self._progress_at))
            self._term = None
            return
        until = func.clock_timestamp() + seconds(LEADER_SECONDS)
        if self._term is not None and not by_force:
            round_at = func.clock_timestamp() - seconds(asked - self._round_at)
            renewed = update(LeaderRow).where(LeaderRow.term == self._term, LeaderRow.holder == self._holder)
            renewed = renewed.values(expires_at=until, round_at=round_at)
            with self._sessions.begin() as session:
                kept = session.scalar(renewed.returning(LeaderRow.term))
            if kept is not None:
                self._valid_until = asked + LEADER_SECONDS
                return
            log.warning("leadership_lost", term=self._term)
            self._term = None
        takes = update(LeaderRow).values(
            term=LeaderRow.term + 1, holder=self._holder, expires_at=until, round_at=func.clock_timestamp()
        )
        if not by_force:
            takes = takes.where(LeaderRow.expires_at < func.clock_timestamp())
        with self._sessions.begin() as session:
            # The old leader may be inside a transaction; better try again than wait for it here.
            session.execute(text("SET LOCAL lock_timeout = '2s'"))
            taken = session.scalar(takes.returning(LeaderRow.term))
        if taken is None:
            return
        self._round_at = self._clock()
        self._term, self._valid_until = taken, asked + LEADER_SECONDS
        log.info("leader_elected", term=taken)
        self.on_elected()

    def _give_up(self) -> None:
        if self._term is None:
            return
        mine = update(LeaderRow).where(LeaderRow.term == self._term, LeaderRow.holder == self._holder)
        with self._sessions.begin() as session:
            session.execute(mine.values(expires_at=func.clock_timestamp()))
        self._term = None
