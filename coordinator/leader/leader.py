"""The threads of a coordinator that work while it leads: one for the duties, one for the projection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import sessionmaker

from coordinator.leader.duties import Duties
from coordinator.leader.election import Election, Fence, NotLeading
from coordinator.leader.projecting import Projecting
from coordinator.settings import CoordinatorSettings

log = structlog.get_logger()


class Leader:
    """Takes part in elections, and works while it leads."""

    def __init__(self, engine: Engine, elections: Engine, settings: CoordinatorSettings) -> None:
        """Use these connections.

        Args:
            engine: for the two threads.
            elections: for nothing else, so that no other work delays a renewal.
            settings: of this coordinator.
        """
        self._settings = settings
        self._engine = engine
        self._sessions = sessionmaker(engine, expire_on_commit=False)
        self._election = Election(elections)
        self._election.on_elected = self.wake
        self._duties = _Rounds("leader", self._begin_duties, self._election, settings.leader_interval)
        self._projecting = _Rounds(
            "projector", self._begin_projecting, self._election, settings.leader_interval
        )
        self._threads: list[threading.Thread] = []

    @property
    def is_leader(self) -> bool:
        """Whether this coordinator leads now."""
        return self._election.term is not None

    @property
    def round_seconds(self) -> float:
        """Duration of the last round of duties."""
        return self._duties.seconds

    def start(self) -> None:
        """Start the threads."""
        self._election.start()
        self._threads = [
            threading.Thread(target=rounds.run, name=rounds.name, daemon=True)
            for rounds in (self._duties, self._projecting)
        ]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Start the next rounds now, because something changed."""
        self._duties.wake.set()
        self._projecting.wake.set()

    def stop(self) -> None:
        """End after the current steps and give up leadership."""
        for rounds in (self._duties, self._projecting):
            rounds.stopping = True
        self.wake()
        for thread in self._threads:
            thread.join()
        if self._threads:
            self._election.stop()

    def _begin_duties(self, term: int) -> Callable[[], None]:
        duties = Duties(
            self._sessions,
            self._settings,
            Fence(self._sessions, term),
            record_progress=self._election.record_progress,
            is_stopping=lambda: self._duties.stopping,
        )

        def round_of_duties() -> None:
            finished = False
            self._election.record_progress()
            try:
                duties.round()
                finished = True
            finally:
                self._election.record_pause(round_finished=finished)

        return round_of_duties

    def _begin_projecting(self, term: int) -> Callable[[], None]:
        projecting = Projecting(
            self._engine,
            self._sessions,
            self._settings,
            Fence(self._sessions, term),
            is_stopping=lambda: self._projecting.stopping,
        )
        return projecting.round


class _Rounds:
    """Does one round after the other while its coordinator leads."""

    def __init__(
        self, name: str, begin: Callable[[int], Callable[[], None]], election: Election, interval: float
    ) -> None:
        """`begin` makes the round of a term."""
        self.name = name
        self.wake = threading.Event()
        self.stopping = False
        self.seconds = 0.0
        self._begin = begin
        self._election = election
        self._interval = interval
        self._term: int | None = None
        self._round: Callable[[], None] = lambda: None

    def run(self) -> None:
        """Do rounds until told to stop; an error ends one round and no more."""
        while not self.stopping:
            try:
                self.attempt()
            except NotLeading as error:
                log.warning("not_leading", thread=self.name, error=str(error))
            except SQLAlchemyError as error:
                log.warning("leader_lost_database", thread=self.name, error=str(error).splitlines()[0])
            except Exception:
                # If this thread ended, the service would get no more trials.
                log.exception("leader_failed", thread=self.name)
            self.wake.wait(self._interval)
            self.wake.clear()

    def attempt(self) -> None:
        """Do a round if this coordinator leads; with a new term everything remembered is forgotten."""
        term = self._election.term
        if term is None:
            return
        if term != self._term:
            self._round = self._begin(term)
            self._term = term
        started = time.monotonic()
        self._round()
        self.seconds = time.monotonic() - started
