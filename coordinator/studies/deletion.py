"""Deletes the rows of a study in one transaction; Optuna's study is deleted after them.

The name of a deleted study stays as a row until the leader has deleted its study in Optuna, so that a crash
between the two deletions leaves work to do and no half-deleted study.
"""

from __future__ import annotations

from typing import Any

import structlog
from sqlalchemy import ColumnElement, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import InstrumentedAttribute, Session

from coordinator.events import publish
from coordinator.store.studies import get_study
from coordinator.store.tables import (
    ClaimRow,
    DeletedStudyRow,
    EnqueuedRow,
    EventRow,
    FoldRow,
    InheritedTrialRow,
    LeaseRow,
    OutboxRow,
    ResultRow,
    StudyFoldRow,
    StudyRow,
    TrialRow,
)
from services.contracts import EventKind, StudyState
from services.errors import Conflict, InvalidInput

log = structlog.get_logger()


def delete_study(session: Session, name: str, confirm: str | None) -> None:
    """Delete a study with all its trials and results; the leader deletes its study in Optuna.

    Raises:
        InvalidInput: `confirm` is not the study's name.
        Conflict: the study is running, or a worker still holds a fold of it.
    """
    if confirm != name:
        raise InvalidInput(
            f"to delete study {name} with all its results, confirm it with its name", field="confirm"
        )
    study = get_study(session, name)
    _check_deletable(session, study)
    of_study = select(TrialRow.id).where(TrialRow.study_id == study.id)
    # Trials are locked before their study, as everywhere; then no other transaction can change either.
    locked = session.scalars(of_study.order_by(TrialRow.id).with_for_update()).all()
    study = get_study(session, name, lock=True)
    _check_deletable(session, study)
    if len(locked) != session.scalar(select(func.count()).select_from(of_study.subquery())):
        raise Conflict(f"study {name} got new trials at the same moment; look at it, then retry", field="state")
    leases = select(LeaseRow.id).where(LeaseRow.trial_id.in_(of_study))
    _delete(session, ClaimRow.lease_id, ClaimRow.lease_id.in_(leases))
    for trial_id in (OutboxRow.trial_id, ResultRow.trial_id, LeaseRow.trial_id, FoldRow.trial_id):
        _delete(session, trial_id, trial_id.in_(of_study))
    for study_id in (
        TrialRow.study_id,
        StudyFoldRow.study_id,
        EnqueuedRow.study_id,
        InheritedTrialRow.study_id,
        EventRow.study_id,
        StudyRow.id,
    ):
        _delete(session, study_id, study_id == study.id)
    session.execute(insert(DeletedStudyRow).values(name=name).on_conflict_do_nothing())
    publish(session, study.id, EventKind.STUDY_DELETED, study=name)
    log.info("study_deleted", study=name, trials=len(locked))


def _check_deletable(session: Session, study: StudyRow) -> None:
    if study.state == StudyState.RUNNING:
        raise Conflict(f"study {study.name} is running; pause or stop it first", field="state")
    held = exists().where(
        LeaseRow.trial_id == TrialRow.id, LeaseRow.outcome.is_(None), TrialRow.study_id == study.id
    )
    if session.scalar(select(held)):
        raise Conflict(
            f"workers still hold folds of study {study.name}; wait until they finish, or pause it with `now`",
            field="state",
        )


def _delete(session: Session, key: InstrumentedAttribute[Any], which: ColumnElement[bool]) -> None:
    # No objects of these rows are in the session, so none need be brought up to date.
    session.execute(delete(key.class_).where(which), execution_options={"synchronize_session": False})
