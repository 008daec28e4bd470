"""What happened, for those who follow: written with the change itself, read in an order that skips nothing.

Ids are drawn before their transaction ends, so a lower one can become visible after a higher one. Events are
therefore read in the order of (transaction, id), and only those of transactions below the oldest that is still
under way: all that comes later stands behind them. A transaction that writes for long holds newer events back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import BigInteger, delete, func, literal_column, select, tuple_
from sqlalchemy.orm import Session

from coordinator.store.appends import event_row
from coordinator.store.tables import EventRow, StudyRow
from services.contracts import Event, EventKind
from services.errors import InvalidInput

KEPT_DAYS = 30
KEPT_EVENTS = 100_000
"""Older ones, and more, are dropped by the leader."""

PAGE = 500
"""Events read at once."""


class Place(NamedTuple):
    """A place in the order of events; what is after it has not been told."""

    xid: int
    id: int

    def __str__(self) -> str:
        return f"{self.xid}-{self.id}"


BEGINNING = Place(0, 0)


def tell(session: Session, study_id: int, kind: EventKind, **data: Any) -> None:
    """Write an event in the transaction of what it tells of."""
    session.execute(event_row(study_id, kind.value, data))


def parse_place(text: str) -> Place:
    """The place that an event's id names.

    Raises:
        InvalidInput: it is no id of an event.
    """
    xid, dash, number = text.partition("-")
    if not (dash and _is_number(xid) and _is_number(number)):
        raise InvalidInput(
            f"{text!r} is no id of an event; send the last one you got, or 0-0 for all there are",
            field="after",
        )
    return Place(int(xid), int(number))


def newest_place(session: Session) -> Place:
    """The place after the last event that can be told now."""
    newest = session.execute(
        select(EventRow.xid, EventRow.id)
        .where(_told)
        .order_by(EventRow.xid.desc(), EventRow.id.desc())
        .limit(1)
    ).first()
    return Place(newest.xid, newest.id) if newest else BEGINNING


def events_after(session: Session, place: Place, study_id: int | None = None) -> list[Event]:
    """The next events after a place, of one study or of all; at most `PAGE`, and never one that skips another.

    A place that this database has not reached, as after it was restored, counts as the beginning.
    """
    reached = session.scalar(select(_upper))
    if reached is not None and place.xid >= reached:
        place = BEGINNING
    wanted = (
        select(EventRow, StudyRow.name)
        .outerjoin(StudyRow, StudyRow.id == EventRow.study_id)
        .where(_told, _place > tuple_(place.xid, place.id, types=[BigInteger, BigInteger]))
        .order_by(EventRow.xid, EventRow.id)
        .limit(PAGE)
    )
    if study_id is not None:
        wanted = wanted.where(EventRow.study_id == study_id)
    return [
        Event(
            id=str(Place(event.xid, event.id)),
            kind=EventKind(event.kind),
            study=name if name is not None else event.data.get("study", ""),
            at=event.at,
            data=event.data,
        )
        for event, name in session.execute(wanted)
    ]


def drop_old_events(session: Session) -> None:
    """Drop what is older than `KEPT_DAYS` or more than `KEPT_EVENTS`, and what another database left."""
    age = func.clock_timestamp() - func.make_interval(0, 0, 0, KEPT_DAYS)
    first_kept = (
        select(EventRow.xid, EventRow.id)
        .order_by(EventRow.xid.desc(), EventRow.id.desc())
        .offset(KEPT_EVENTS - 1)
        .limit(1)
    )
    session.execute(delete(EventRow).where((EventRow.at < age) | (EventRow.xid >= _upper)))
    if (oldest := session.execute(first_kept).first()) is not None:
        bound = tuple_(oldest.xid, oldest.id, types=[BigInteger, BigInteger])
        session.execute(delete(EventRow).where(_place < bound))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 2**63


_place = tuple_(EventRow.xid, EventRow.id)
_upper = literal_column("pg_snapshot_xmax(pg_current_snapshot())::text::bigint", BigInteger)
_told = EventRow.xid < literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint", BigInteger)
