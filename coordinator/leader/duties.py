"""The duties of each round: leases, times, trials and ends of studies, one study after the other.

Each duty has a budget of time. What it did not reach comes first in the next round, so that neither many
studies nor a slow one keeps the others from their turn.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import structlog
from sqlalchemy import exists, select
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from coordinator.events import drop_old_events
from coordinator.leader.asking import Asking
from coordinator.leader.election import Fence, NotLeading
from coordinator.leader.failing import Failures, forget_old_failures
from coordinator.scheduling import claims, failures, trials
from coordinator.settings import CoordinatorSettings
from coordinator.store.conditions import is_open
from coordinator.store.database import database_is_gone, is_locked
from coordinator.store.tables import StudyRow, TrialRow
from coordinator.studies import life
from services.contracts import StudyState

log = structlog.get_logger()

Item = TypeVar("Item")

BUDGET_SECONDS = 2.0
"""Seconds of a round that one duty may take, counted between its steps."""

SECONDS_BETWEEN_DROPS = 60.0
"""Seconds between two deletions of old events, claims and failures."""


class Duties:
    """What a leader does in its term."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        settings: CoordinatorSettings,
        fence: Fence,
        *,
        record_progress: Callable[[], None] = lambda: None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin a term.

        Args:
            sessions: for reading.
            settings: of this coordinator.
            fence: begins the transactions that write.
            record_progress: called after each step.
            is_stopping: whether to end between two steps.
        """
        self._sessions = sessions
        self._fence = fence
        self._record_progress = record_progress
        self._is_stopping = is_stopping
        self._failures = Failures(sessions, fence, "expire", "stop", "cancel", "suggest", "complete")
        self._asking = Asking(sessions, settings, fence)
        self._next: dict[str, int] = {}
        self._dropped_at = -SECONDS_BETWEEN_DROPS

    def round(self) -> None:
        """Do every duty once; one that fails does not keep the others from being done.

        Raises:
            SQLAlchemyError: the database is gone.
            NotLeading: another coordinator leads.
        """
        for duty in (
            self._expire_leases,
            self._stop_overdue_studies,
            self._cancel_trials,
            self._suggest,
            self._complete_studies,
            self._drop_old_rows,
        ):
            with _contained(duty.__name__.lstrip("_")):
                duty()

    def _expire_leases(self) -> None:
        with self._sessions() as session:
            expired = failures.expired_leases(session)
        of_study: dict[int, list[str]] = {}
        for lease_id, study_id in expired:
            of_study.setdefault(study_id, []).append(lease_id)

        def expire(study_id: int) -> None:
            # The longest expired first, until the time is over.
            for lease_id in self._in_time(of_study[study_id]):
                with _unless_locked(), self._fence.begin() as session:
                    failures.expire(session, lease_id)

        self._each("expire", sorted(of_study), expire)

    def _stop_overdue_studies(self) -> None:
        with self._sessions() as session:
            overdue = {study_id: (name, reason) for study_id, name, reason in life.overdue_studies(session)}

        def stop(study_id: int) -> None:
            with self._fence.begin() as session:
                life.stop(session, *overdue[study_id])

        self._each("stop", sorted(overdue), stop)

    def _cancel_trials(self) -> None:
        """Cancel trials that are past their time, and open trials of stopped studies."""
        with self._sessions() as session:
            open_trials = (
                select(TrialRow.id, TrialRow.study_id, StudyRow.reason)
                .join(StudyRow, StudyRow.id == TrialRow.study_id)
                .where(StudyRow.state == StudyState.STOPPED, is_open())
                .order_by(TrialRow.id)
            )
            late = [*trials.overdue_trials(session)]
            late += [
                (trial_id, study_id, reason or "the study was stopped")
                for trial_id, study_id, reason in session.execute(open_trials)
            ]
        of_study: dict[int, list[tuple[int, str]]] = {}
        for trial_id, study_id, reason in late:
            of_study.setdefault(study_id, []).append((trial_id, reason))

        def cancel(study_id: int) -> None:
            for trial_id, reason in self._in_time(of_study[study_id]):
                with _unless_locked(), self._fence.begin() as session:
                    trials.cancel_trial(session, trial_id, reason)

        self._each("cancel", sorted(of_study), cancel)

    def _suggest(self) -> None:
        with self._sessions() as session:
            running = session.scalars(
                select(StudyRow.id).where(StudyRow.state == StudyState.RUNNING).order_by(StudyRow.id)
            ).all()
        self._asking.keep_only(running)

        def suggest(study_id: int) -> None:
            while not self._is_stopping() and self._asking.ask_once(study_id):
                self._record_progress()

        self._each("suggest", running, suggest)

    def _complete_studies(self) -> None:
        # Two trials that end at the same time may each see the other as open; here both have ended.
        still_open = exists().where(TrialRow.study_id == StudyRow.id, is_open())
        with self._sessions() as session:
            candidates = session.scalars(
                select(StudyRow.id)
                .where(StudyRow.state == StudyState.RUNNING, ~still_open)
                .order_by(StudyRow.id)
            ).all()

        def complete(study_id: int) -> None:
            with self._fence.begin() as session:
                trials.complete_if_done(session, study_id)

        self._each("complete", candidates, complete)

    def _drop_old_rows(self) -> None:
        if time.monotonic() - self._dropped_at < SECONDS_BETWEEN_DROPS:
            return
        for drop in (drop_old_events, claims.forget_claims_without_fold, forget_old_failures):
            with self._fence.begin() as session:
                drop(session)
        self._dropped_at = time.monotonic()

    def _in_time(self, items: Sequence[Item]) -> Iterator[Item]:
        """The items of one study that it reaches within its budget."""
        until = time.monotonic() + BUDGET_SECONDS
        for item in items:
            if self._is_stopping() or time.monotonic() > until:
                return
            yield item
            self._record_progress()

    def _each(self, duty: str, studies: Sequence[int], work: Callable[[int], None]) -> None:
        """Do a duty for each of these studies, sorted by id, that it reaches within its budget."""
        first = bisect_left(studies, self._next.pop(duty, 0))
        until = time.monotonic() + BUDGET_SECONDS
        for study_id in (*studies[first:], *studies[:first]):
            if self._is_stopping() or time.monotonic() > until:
                self._next[duty] = study_id
                return
            if self._failures.is_due(duty, study_id):
                with self._failures.contained(duty, study_id):
                    work(study_id)
                self._record_progress()


@contextmanager
def _unless_locked() -> Iterator[None]:
    """Leave a trial that another transaction holds for the next round."""
    try:
        yield
    except OperationalError as error:
        if not is_locked(error):
            raise
        log.info("trial_locked")


@contextmanager
def _contained(duty: str) -> Iterator[None]:
    """Keep an error that belongs to no single study from stopping the other duties."""
    try:
        yield
    except NotLeading:
        raise
    except Exception as error:
        if isinstance(error, SQLAlchemyError) and database_is_gone(error):
            raise
        log.exception("leader_step_failed", duty=duty)
