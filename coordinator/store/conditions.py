"""SQL expressions that several queries share."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from sqlalchemy import ARRAY, BigInteger, ColumnElement, any_, func, literal
from sqlalchemy.orm import InstrumentedAttribute

from coordinator.store.tables import TrialRow
from services.contracts import TrialState


def is_open() -> ColumnElement[bool]:
    """Whether a trial is ready or running."""
    return TrialRow.state.in_([state for state in TrialState if not state.over])


def among(column: InstrumentedAttribute[int], ids: Iterable[int]) -> ColumnElement[bool]:
    """Whether a column has one of any number of ids; `in_` sends each as a parameter, at most 65,535."""
    return column == any_(literal(list(ids), ARRAY(BigInteger)))


def seconds(number: float | ColumnElement[float]) -> ColumnElement[timedelta]:
    """An interval of this number of seconds."""
    return func.make_interval(0, 0, 0, 0, 0, 0, number)
