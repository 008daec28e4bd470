"""Events that a study publishes."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import (
    Field,
)

from services.contracts.base import Contract
from services.search_space import ParameterValue


class EventKind(StrEnum):
    """Kinds of events."""

    STUDY_MOVED = "study_moved"
    STUDY_CHANGED = "study_changed"
    STUDY_DELETED = "study_deleted"
    TRIAL_ENDED = "trial_ended"
    FOLD_ACCEPTED = "fold_accepted"


class Event(Contract):
    """A change of a study, a trial or a fold."""

    id: str = Field(description="send it as the header Last-Event-ID or the query `after` to get later events")
    kind: EventKind
    study: str
    at: datetime
    data: dict[str, ParameterValue | None]
