"""Events: published with the change that they report, and read in an order that skips none.

Ids are drawn before their transaction ends, so a lower one can become visible after a higher one. Events are
therefore read in the order of (transaction, id), and only those of transactions below the oldest one that still
runs: all later events come after them. A transaction that writes for a long time holds newer events back.
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
"""Age in days beyond which the leader drops events."""

KEPT_EVENTS = 100_000
"""Number of events beyond which the leader drops the oldest."""

PAGE = 500
"""Events read at once."""


class Cursor(NamedTuple):
    """A position in the order of events: that of the last event that a reader has got."""

    xid: int
    id: int

    def __str__(self) -> str:
        return f"{self.xid}-{self.id}"


BEGINNING = Cursor(0, 0)
"""Before all events."""

_cursor = tuple_(EventRow.xid, EventRow.id)
_upper = literal_column("pg_snapshot_xmax(pg_current_snapshot())::text::bigint", BigInteger)
_settled = EventRow.xid < literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint", BigInteger)


def publish(session: Session, study_id: int, kind: EventKind, **data: Any) -> None:
    """Write an event in the transaction of the change that it reports."""
    session.execute(event_row(study_id, kind.value, data))


def parse_cursor(text: str) -> Cursor:
    """The position of the event that has this id.

    Raises:
        InvalidInput: it is not the id of an event.
    """
    xid, dash, number = text.partition("-")
    if not (dash and _is_number(xid) and _is_number(number)):
        raise InvalidInput(
            f"{text!r} is not the id of an event; send the last one that you got, or 0-0 for all events",
            field="after",
        )
    return Cursor(int(xid), int(number))


def newest_cursor(session: Session) -> Cursor:
    """The position of the last event that can be read now."""
    newest = session.execute(
        select(EventRow.xid, EventRow.id)
        .where(_settled)
        .order_by(EventRow.xid.desc(), EventRow.id.desc())
        .limit(1)
    ).first()
    return Cursor(newest.xid, newest.id) if newest else BEGINNING


def events_after(session: Session, cursor: Cursor, study_id: int | None = None) -> list[Event]:
    """The next events after a cursor, of one study or of all; at most `PAGE`, and never one that skips another.

    A cursor that this database has not reached, as after the database was restored, counts as the beginning.
    """
    reached = session.scalar(select(_upper))
    if reached is not None and cursor.xid >= reached:
        cursor = BEGINNING
    wanted = (
        select(EventRow, StudyRow.name)
        .outerjoin(StudyRow, StudyRow.id == EventRow.study_id)
        .where(_settled, _cursor > tuple_(cursor.xid, cursor.id, types=[BigInteger, BigInteger]))
        .order_by(EventRow.xid, EventRow.id)
        .limit(PAGE)
    )
    if study_id is not None:
        wanted = wanted.where(EventRow.study_id == study_id)
    return [
        Event(
            id=str(Cursor(event.xid, event.id)),
            kind=EventKind(event.kind),
            study=name if name is not None else event.data.get("study", ""),
            at=event.at,
            data=event.data,
        )
        for event, name in session.execute(wanted)
    ]


def drop_old_events(session: Session) -> None:
    """Drop events beyond `KEPT_DAYS` or `KEPT_EVENTS`, and those that another database left."""
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
        session.execute(delete(EventRow).where(_cursor < bound))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 2**63
