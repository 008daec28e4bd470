"""The two writes of every fold, counting it and leasing the next one, each alone or both in one statement.

They are most of a coordinator's work, so they take one round trip to the database and are built once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import BindParameter, Float, Table, bindparam, func, insert, literal, select, update
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from coordinator.store.appends import event_row, outbox_row
from coordinator.store.conditions import seconds
from coordinator.store.tables import FoldRow, LeaseRow, ResultRow
from services.contracts import EventKind, FoldState

_COUNTED, _LEASED = "counted_", "leased_"
"""Prefixes of parameters: one named like a column would be a value for that column of the updated table."""

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
_folds, _leases, _results = (cast("Table", row.__table__) for row in (FoldRow, LeaseRow, ResultRow))


@dataclass(frozen=True, kw_only=True)
class NewLease:
    """A lease that is not stored yet."""

    id: str
    trial_id: int
    fold: int
    term: int
    """One more than the fold's last term."""

    secret: str
    worker_id: str
    seconds: float
    """Time until it expires."""


def count_fold(
    session: Session, study_id: int, row: ResultRow, event: dict[str, Any], following: NewLease | None = None
) -> None:
    """Store a result, end its fold and lease as done, publish an event and mark the trial in the outbox.

    Args:
        session: its transaction holds the lock of the trial.
        study_id: of the trial.
        row: the result, without the time of its receipt; it is not added to the session.
        event: the data of the event.
        following: the lease of another fold of the trial, written in the same statement.
    """
    given = {f"{_COUNTED}{name}": getattr(row, name) for name in _RESULT} | {
        f"{_COUNTED}study_id": study_id,
        f"{_COUNTED}kind": EventKind.FOLD_ACCEPTED.value,
        f"{_COUNTED}event": event,
    }
    if following is None:
        session.execute(_COUNT, given)
    else:
        session.execute(_COUNT_AND_LEASE, given | _parameters(following))


def lease_fold(session: Session, lease: NewLease) -> None:
    """Lease a pending fold in a new term.

    Args:
        session: its transaction holds the lock of the trial.
        lease: the lease to store.
    """
    session.execute(_LEASE, _parameters(lease))


def _parameters(lease: NewLease) -> dict[str, Any]:
    return {f"{_LEASED}{name}": value for name, value in vars(lease).items()}


def _counted(name: str) -> BindParameter[Any]:
    return bindparam(_COUNTED + name)


def _leased(name: str, kind: TypeEngine[Any] | None = None) -> BindParameter[Any]:
    return bindparam(_LEASED + name, type_=kind)


# All parts of one statement see the database as it was before; foreign keys are checked at its end.
_COUNT_PARTS = (
    insert(_results).values({name: _counted(name) for name in _RESULT}).cte("result"),
    update(_folds)
    .where(_folds.c.trial_id == _counted("trial_id"), _folds.c.fold == _counted("fold"))
    .values(state=FoldState.DONE.value)
    .cte("fold_done"),
    update(_leases)
    .where(_leases.c.id == _counted("lease_id"))
    .values(outcome="done", ended_at=func.clock_timestamp())
    .cte("lease_done"),
    event_row(_counted("study_id"), _counted("kind"), _counted("event")).cte("event"),
    outbox_row(_counted("trial_id")).cte("outbox"),
)
_LEASE_PARTS = (
    update(_folds)
    .where(_folds.c.trial_id == _leased("trial_id"), _folds.c.fold == _leased("fold"))
    .values(state=FoldState.LEASED.value, term=_leased("term"))
    .cte("fold_leased"),
    insert(_leases)
    .values(
        {name: _leased(name) for name in ("id", "trial_id", "fold", "term", "secret", "worker_id")}
        | {
            "expires_at": func.clock_timestamp() + seconds(_leased("seconds", Float())),
            "step_at": func.clock_timestamp(),
        }
    )
    .cte("lease"),
)
_COUNT = select(literal(1)).add_cte(*_COUNT_PARTS)
_LEASE = select(literal(1)).add_cte(*_LEASE_PARTS)
_COUNT_AND_LEASE = select(literal(1)).add_cte(*_COUNT_PARTS, *_LEASE_PARTS)
