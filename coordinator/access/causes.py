"""Why the database did not serve a request: in words for its sender, and in the log for the operator."""

from __future__ import annotations

import math
import threading
import time

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from coordinator.store.database import first_line

log = structlog.get_logger()

CAUSE_SECONDS = 1.0
"""Minimum seconds between two lines in the log, because thousands of requests may fail for one cause."""

_CAUSES = {
    "53100": "the database's disk is full",
    "53200": "the database is out of memory",
    "53300": "the database has too many connections",
    "57014": "the database took too long to answer",
    "55P03": "the database took too long to get a lock",
}
"""What a user reads, by PostgreSQL's error code."""

_lock = threading.Lock()
_logged_at = -math.inf
_not_logged = 0


def cause_in_words(error: SQLAlchemyError) -> str:
    """What a user reads; details are in the log."""
    if isinstance(error, PoolTimeout):
        return "too many requests wait for the database"
    code = getattr(getattr(error, "orig", None), "sqlstate", None)
    return _CAUSES.get(code or "", "the database does not answer")


def log_cause(error: SQLAlchemyError) -> None:
    """Log the cause, with the number of failures since the last line."""
    global _logged_at, _not_logged  # noqa: PLW0603 - one log has one rate
    with _lock:
        now = time.monotonic()
        if now - _logged_at < CAUSE_SECONDS:
            _not_logged += 1
            return
        others, _not_logged, _logged_at = _not_logged, 0, now
    log.warning("database_error", cause=first_line(error), not_logged_before=others)
