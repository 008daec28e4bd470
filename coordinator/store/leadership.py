"""What the tables say of the leader: whether one leads, whether it is slow, and what it fails to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC

from sqlalchemy import ColumnElement, Float, and_, cast, func, select
from sqlalchemy.orm import Session

from coordinator.store.conditions import seconds
from coordinator.store.tables import FailingDutyRow, LeaderRow

WITHOUT_LEADER_SECONDS = 5.0
"""Seconds after the end of a term within which another coordinator becomes the leader."""

ROUND_SECONDS = 30.0
"""Seconds within which a leader finishes a round of its duties, even with thousands of studies."""

REPEATED = 3
"""Failures in a row after which a duty counts as failing; a single one may be a coincidence."""

RECENT_SECONDS = 300.0
"""Seconds since its last failure after which a duty no longer counts as failing: it is not tried any more."""

_DUTIES = {
    "expire": "end its expired leases",
    "stop": "stop it when its time is over",
    "cancel": "cancel its trials",
    "suggest": "suggest its next trial",
    "complete": "complete it",
    "project": "show it in Optuna",
}


@dataclass(frozen=True, kw_only=True)
class Leadership:
    """The leader's row, in seconds of the database's clock."""

    expired_seconds: float
    """How long ago the last term ended; negative while a coordinator leads."""

    round_age_seconds: float
    """How long ago a leader last finished a round of its duties."""

    @property
    def trouble(self) -> str | None:
        """What is wrong, in a sentence; None if nothing is."""
        if self.expired_seconds > WITHOUT_LEADER_SECONDS:
            return (
                f"no coordinator has led for {self.expired_seconds:.0f} s: no trial is suggested, and no "
                "expired lease is ended; look at the logs of the coordinators"
            )
        if self.round_age_seconds > ROUND_SECONDS:
            return (
                f"the leader last finished a round {self.round_age_seconds:.0f} s ago: trials and expired "
                "leases wait; look at its log"
            )
        return None


def leadership(session: Session) -> Leadership:
    """The state of leadership now."""
    now = func.clock_timestamp()
    expired, age = session.execute(
        select(
            cast(func.extract("epoch", now - LeaderRow.expires_at), Float(53)),
            cast(func.extract("epoch", now - LeaderRow.round_at), Float(53)),
        )
    ).one()
    return Leadership(expired_seconds=expired, round_age_seconds=age)


def fails_repeatedly() -> ColumnElement[bool]:
    """Whether a recorded duty fails again and again."""
    recent = FailingDutyRow.last_at > func.clock_timestamp() - seconds(RECENT_SECONDS)
    return and_(FailingDutyRow.failures >= REPEATED, recent)


def failing_duties(session: Session, study_id: int) -> Sequence[str]:
    """Sentences about what the leader fails to do for a study again and again."""
    rows = session.scalars(
        select(FailingDutyRow)
        .where(FailingDutyRow.study_id == study_id, fails_repeatedly())
        .order_by(FailingDutyRow.duty)
    )
    return [
        f"the coordinator failed {row.failures} times since {row.since.astimezone(UTC):%Y-%m-%d %H:%M} UTC to "
        f"{_DUTIES[row.duty]}: {row.message}"
        for row in rows
    ]
