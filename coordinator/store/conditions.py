"""SQL expressions that several queries share."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, func

from coordinator.store.tables import TrialRow
from services.contracts import TrialState


def is_open() -> ColumnElement[bool]:
    """Whether a trial is ready or running."""
    return TrialRow.state.in_([state for state in TrialState if not state.over])


def seconds(number: float | ColumnElement[float]) -> ColumnElement[timedelta]:
    """An interval of this number of seconds."""
    return func.make_interval(0, 0, 0, 0, 0, 0, number)
