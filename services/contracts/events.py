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
    """What `/events` tells of."""

    STUDY_MOVED = "study_moved"
    STUDY_CHANGED = "study_changed"
    STUDY_DELETED = "study_deleted"
    TRIAL_ENDED = "trial_ended"
    FOLD_ACCEPTED = "fold_accepted"


class Event(Contract):
    """Something that happened."""

    id: str = Field(description="to go on after it: the header Last-Event-ID, or the query `after`")
    kind: EventKind
    study: str
    at: datetime
    data: dict[str, ParameterValue | None]
