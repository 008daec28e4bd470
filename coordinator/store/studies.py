"""A study's row: found by name, locked, with its parsed spec and its split."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from cachetools import LRUCache
from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.exc import NoResultFound
from sqlalchemy.orm import Session

from coordinator.store.tables import (
    StudyFoldRow,
    StudyRow,
)
from services.contracts import (
    StoredSpec,
    StudySpec,
)
from services.errors import NotFound

SPECS_KEPT = 1000
"""Parsed specs kept in memory."""

SPLITS_KEPT = 100
"""Splits of studies kept in memory, each of about 50 kB."""

_STORED_SPEC: TypeAdapter[StudySpec] = TypeAdapter(StoredSpec)

# Threads share both caches, under this lock.
_lock = threading.Lock()
_specs: LRUCache[int, tuple[dict[str, Any], StudySpec]] = LRUCache(SPECS_KEPT)
_splits: LRUCache[tuple[int, datetime, str], Sequence[StudyFoldRow]] = LRUCache(SPLITS_KEPT)


def get_study(session: Session, name: str, *, lock: bool = False) -> StudyRow:
    """A study by name.

    Raises:
        NotFound: no study has this name; the message lists the newest names.
    """
    wanted = select(StudyRow).where(StudyRow.name == name)
    study = session.scalar(wanted)
    if study is None:
        names = session.scalars(select(StudyRow.name).order_by(StudyRow.id.desc()).limit(10)).all()
        there = f"there are: {', '.join(names)}" if names else "there is none yet"
        raise NotFound(f"there is no study {name!r} ({there})", field="name")
    return lock_study(session, study.id) if lock else study


def lock_study(session: Session, study_id: int) -> StudyRow:
    """Lock a study until the transaction ends, and read it as it is now."""
    # Rows that only refer to the study do not wait for this lock. PostgreSQL takes a shared lock on the study
    # for a trial that changes twice in a transaction; two trials that end together would wait for each other.
    return session.get_one(StudyRow, study_id, with_for_update={"key_share": True}, populate_existing=True)


def read_stored_spec(stored: Mapping[str, Any]) -> StudySpec:
    """A spec as a study's row has it; one from before feedback delays has none.

    Raises:
        ValidationError: it is not a valid spec.
    """
    return _STORED_SPEC.validate_python(stored)


def parsed_spec(study: StudyRow) -> StudySpec:
    """The spec of a study, parsed once, because parsing would be the slowest part of many requests."""
    with _lock:
        stored, spec = _specs.get(study.id, (None, None))
    if spec is None or stored != study.spec:
        spec = read_stored_spec(study.spec)
        with _lock:
            _specs[study.id] = study.spec, spec
    return spec


def study_split(session: Session, study: StudyRow) -> Sequence[StudyFoldRow]:
    """The split of a study by fold, as rows of no session. It never changes and is read once.

    Raises:
        NoResultFound: the study was deleted at the same time.
    """
    # In another database, the study with this id was created at another time.
    known = (study.id, study.created_at, study.split_hash)
    with _lock:
        split = _splits.get(known)
    if split is None:
        columns = StudyFoldRow.__table__.c
        rows = session.execute(select(*columns).where(columns.study_id == study.id).order_by(columns.fold))
        split = tuple(StudyFoldRow(**row) for row in rows.mappings())
        if not split:
            raise NoResultFound(f"study {study.name} was deleted at the same time")
        with _lock:
            _splits[known] = split
    return split
