"""Contains the errors of single studies, and records them where people look: with the study.

A study whose duty fails again and again is tried less and less often, so that it costs the others little.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import NoResultFound, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from coordinator.leader.election import Fence, NotLeading
from coordinator.store.conditions import seconds
from coordinator.store.database import database_is_gone, is_locked
from coordinator.store.tables import FailingDutyRow

log = structlog.get_logger()

FIRST_PAUSE_SECONDS = 0.5
"""Seconds between the first failure of a duty and the next attempt; each further pause is twice as long."""

MAX_PAUSE_SECONDS = 60.0
"""Maximum seconds between two attempts of a duty that fails."""

FORGOTTEN_SECONDS = 3600.0
"""Seconds since the last failure after which a record is deleted: nobody does this duty any more."""

MESSAGE_LENGTH = 500
"""Characters of an error that are stored."""


@dataclass
class _Failing:
    failures: int
    retry_at: float = 0.0


class Failures:
    """The duties that fail, by study. Not safe to share between threads: each thread has its own."""

    def __init__(self, sessions: sessionmaker[Session], fence: Fence, *duties: str) -> None:
        """Load what an earlier leader recorded of these duties."""
        self._fence = fence
        recorded = select(FailingDutyRow).where(FailingDutyRow.duty.in_(duties))
        with sessions() as session:
            self._failing = {
                (row.duty, row.study_id): _Failing(row.failures) for row in session.scalars(recorded)
            }

    def is_due(self, duty: str, study_id: int) -> bool:
        """Whether a duty should be tried now: it did not fail last time, or the pause after that is over."""
        failing = self._failing.get((duty, study_id))
        return failing is None or time.monotonic() >= failing.retry_at

    @contextmanager
    def contained(self, duty: str, study_id: int) -> Iterator[None]:
        """Keep an error of a study's duty from stopping the others; record it until the duty succeeds.

        Raises:
            SQLAlchemyError: the database is gone.
            NotLeading: another coordinator leads.
        """
        try:
            yield
        except NoResultFound:
            log.info("deleted_meanwhile", duty=duty, study_id=study_id)
        except NotLeading:
            raise
        except Exception as error:
            if is_locked(error):
                log.info("study_locked", duty=duty, study_id=study_id)
                return
            if isinstance(error, SQLAlchemyError) and database_is_gone(error):
                raise
            self._record(duty, study_id, error)
        else:
            if (duty, study_id) in self._failing:
                self._delete(duty, study_id)
                del self._failing[duty, study_id]

    def _record(self, duty: str, study_id: int, error: Exception) -> None:
        failing = self._failing.setdefault((duty, study_id), _Failing(0))
        failing.failures += 1
        pause = FIRST_PAUSE_SECONDS * 2 ** min(failing.failures - 1, 10)
        failing.retry_at = time.monotonic() + min(MAX_PAUSE_SECONDS, pause)
        log.exception("leader_step_failed", duty=duty, study_id=study_id, failures=failing.failures)
        lines = str(error).splitlines()
        message = (lines[0] if lines else type(error).__name__)[:MESSAGE_LENGTH]
        row = insert(FailingDutyRow).values(
            study_id=study_id, duty=duty, failures=failing.failures, message=message
        )
        changed = {"failures": failing.failures, "message": message, "last_at": func.clock_timestamp()}
        try:
            with self._fence.begin() as session:
                session.execute(row.on_conflict_do_update(index_elements=["study_id", "duty"], set_=changed))
        except SQLAlchemyError as unrecorded:
            # The study was deleted, or the database is gone, which the next step notices.
            log.warning("failure_not_recorded", error=str(unrecorded).splitlines()[0])

    def _delete(self, duty: str, study_id: int) -> None:
        with self._fence.begin() as session:
            session.execute(
                delete(FailingDutyRow).where(FailingDutyRow.study_id == study_id, FailingDutyRow.duty == duty)
            )


def forget_old_failures(session: Session) -> None:
    """Delete the records of duties that have not failed for long, such as those of studies that have ended."""
    old = FailingDutyRow.last_at < func.clock_timestamp() - seconds(FORGOTTEN_SECONDS)
    session.execute(delete(FailingDutyRow).where(old))
