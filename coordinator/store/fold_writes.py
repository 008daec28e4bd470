"""The two writes of every fold, each as one statement: it is counted, and the next one is leased.

They are most of what a coordinator does, so each is one way to the database and back, and built only once.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import BindParameter, Executable, Float, Table, bindparam, func, insert, literal, select, update
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from coordinator.store.tables import EventRow, FoldRow, LeaseRow, OutboxRow, ResultRow
from services.contracts import EventKind, FoldState


def count_fold(session: Session, study_id: int, row: ResultRow, event: dict[str, Any]) -> None:
    """Store a result with all that goes with it: fold and lease are done, it is told and handed to the outbox.

    Args:
        session: whose transaction holds the lock of the trial.
        study_id: of the trial.
        row: all but when it was received; it does not become part of the session.
        event: the data of the event.
    """
    given = {name: getattr(row, name) for name in _RESULT}
    _execute(session, _COUNT, **given, study_id=study_id, kind=EventKind.FOLD_ACCEPTED.value, event=event)


def lease_fold(
    session: Session,
    *,
    lease_id: str,
    trial_id: int,
    fold: int,
    term: int,
    secret: str,
    worker_id: str,
    seconds: float,
) -> None:
    """Lease a pending fold in a new term.

    Args:
        session: whose transaction holds the lock of the trial.
        lease_id: of the lease to be.
        trial_id: of the trial.
        fold: index of the fold.
        term: of the lease, one more than the fold's last.
        secret: of the lease.
        worker_id: its holder.
        seconds: until it lapses.
    """
    _execute(
        session,
        _LEASE,
        lease_id=lease_id,
        trial_id=trial_id,
        fold=fold,
        term=term,
        secret=secret,
        worker_id=worker_id,
        seconds=seconds,
    )


def _execute(session: Session, statement: Executable, **given: Any) -> None:
    session.execute(statement, {_PREFIX + name: value for name, value in given.items()})


_RESULT = (
    "trial_id",
    "fold",
    "lease_id",
    "reused_from",
    "sha256",
    "payload",
    "best_epoch",
    "correct",
    "clips",
    "confusion",
    "verdict",
)


def _given(name: str, kind: TypeEngine[Any] | None = None) -> BindParameter[Any]:
    return bindparam(_PREFIX + name, type_=kind)


_PREFIX = "given_"
"""A parameter called like a column would be a value for that column of the updated table."""

_folds, _leases, _results, _events, _outbox = (
    cast("Table", row.__table__) for row in (FoldRow, LeaseRow, ResultRow, EventRow, OutboxRow)
)
_this_fold = (_folds.c.trial_id == _given("trial_id"), _folds.c.fold == _given("fold"))

# Parts of one statement all see the database as it was before it; what they refer to is checked at its end.
_COUNT = select(literal(1)).add_cte(
    insert(_results).values({name: _given(name) for name in _RESULT}).cte("result"),
    update(_folds).where(*_this_fold).values(state=FoldState.DONE.value).cte("fold_done"),
    update(_leases)
    .where(_leases.c.id == _given("lease_id"))
    .values(outcome="done", ended_at=func.clock_timestamp())
    .cte("lease_done"),
    insert(_events).values(study_id=_given("study_id"), kind=_given("kind"), data=_given("event")).cte("event"),
    insert(_outbox).values(trial_id=_given("trial_id")).cte("outbox"),
)

_LEASE = select(literal(1)).add_cte(
    update(_folds)
    .where(*_this_fold)
    .values(state=FoldState.LEASED.value, term=_given("term"))
    .cte("fold_leased"),
    insert(_leases)
    .values(
        id=_given("lease_id"),
        trial_id=_given("trial_id"),
        fold=_given("fold"),
        term=_given("term"),
        secret=_given("secret"),
        worker_id=_given("worker_id"),
        expires_at=func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, _given("seconds", Float())),
        step_at=func.clock_timestamp(),
    )
    .cte("lease"),
)
