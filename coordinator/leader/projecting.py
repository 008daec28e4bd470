"""Projects studies to Optuna's tables, some trials at a time, each time in one fenced transaction."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import structlog
from sqlalchemy import Engine, delete, exists, func, not_, or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from coordinator.leader.election import Fence
from coordinator.leader.failing import MAX_PAUSE_SECONDS, Failures
from coordinator.optimizer import (
    ProjectionConflict,
    create_tables,
    delete_some,
    open_study,
    project,
    trial_records,
)
from coordinator.settings import CoordinatorSettings
from coordinator.store.conditions import among, is_open
from coordinator.store.database import database_is_gone
from coordinator.store.studies import parsed_spec
from coordinator.store.tables import DeletedStudyRow, OutboxRow, StudyRow, TrialRow

log = structlog.get_logger()

FOLDS_AT_ONCE = 2000
"""Folds of the trials that one transaction projects; at least one trial."""


class Projecting:
    """The projection of one term. Not safe to share between threads."""

    def __init__(
        self,
        engine: Engine,
        sessions: sessionmaker[Session],
        settings: CoordinatorSettings,
        fence: Fence,
        *,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin a term; `is_stopping` tells whether to end between two transactions."""
        self._engine = engine
        self._sessions = sessions
        self._settings = settings
        self._fence = fence
        self._is_stopping = is_stopping
        self._failures = Failures(sessions, fence, "project")
        self._open_projected_at: dict[int, float] = {}
        self._retry_deletion_at: dict[str, float] = {}
        self._has_tables = False

    def round(self) -> None:
        """Project all changes; the studies take turns, so that a large one does not hold up the others.

        Raises:
            SQLAlchemyError: the database is gone.
            NotLeading: another coordinator leads.
        """
        self._forget_deleted()
        with self._sessions() as session:
            changed = session.scalars(
                select(TrialRow.study_id)
                .join(OutboxRow, OutboxRow.trial_id == TrialRow.id)
                .distinct()
                .order_by(TrialRow.study_id)
            ).all()
        if changed:
            self._create_tables()
        now = time.monotonic()
        # An open trial changes with every fold; it is projected at most every `projection_seconds`.
        with_open = {
            study_id
            for study_id in changed
            if now - self._open_projected_at.get(study_id, -math.inf) >= self._settings.projection_seconds
        }
        self._open_projected_at |= dict.fromkeys(with_open, now)
        waiting = [study_id for study_id in changed if self._failures.is_due("project", study_id)]
        while waiting and not self._is_stopping():
            waiting = [study_id for study_id in waiting if self._project_some(study_id, study_id in with_open)]

    def _project_some(self, study_id: int, with_open: bool) -> bool:
        """Project the next trials of a study in one transaction; returns whether more are waiting."""
        more = False
        with self._failures.contained("project", study_id):
            try:
                with self._fence.begin() as session:
                    more = self._project(session, study_id, with_open=with_open)
            except ProjectionConflict as error:
                # Our tables are the truth: Optuna's study is created again from them.
                with self._fence.begin() as session:
                    name = session.get_one(StudyRow, study_id).name
                    _enqueue_all(session, study_id)
                log.error("optuna_study_made_anew", study=name, error=str(error))
                self._delete(name)
                more = True
        return more

    def _project(self, session: Session, study_id: int, *, with_open: bool) -> bool:
        study = session.get_one(StudyRow, study_id)
        optuna_study = open_study(session, study.name)
        if optuna_study.is_new:
            _enqueue_all(session, study_id)
        # The rows are read before the trials, and only they are deleted: a row with a lower number can become
        # visible later, with a change that was not seen.
        outbox = session.execute(
            select(OutboxRow.seq, OutboxRow.trial_id)
            .join(TrialRow, TrialRow.id == OutboxRow.trial_id)
            .where(TrialRow.study_id == study_id)
        ).all()
        changed = among(TrialRow.id, {trial_id for _, trial_id in outbox})
        if not with_open:
            changed &= not_(is_open())
        limit = max(1, FOLDS_AT_ONCE // study.fold_count)
        # Optuna numbers trials by arrival, so one that it lacks is projected before any later one.
        trials = session.scalars(
            select(TrialRow)
            .where(TrialRow.study_id == study_id, or_(changed, TrialRow.number >= optuna_study.trials))
            .order_by(TrialRow.number)
            .limit(limit)
        ).all()
        project(session, optuna_study, parsed_spec(study).space, trial_records(session, study, trials))
        projected = {trial.id for trial in trials}
        done = [seq for seq, trial_id in outbox if trial_id in projected]
        session.execute(delete(OutboxRow).where(among(OutboxRow.seq, done)))
        return len(trials) == limit

    def _forget_deleted(self) -> None:
        """Delete from Optuna the studies deleted here, before another study of such a name is projected."""
        with self._sessions() as session:
            names: Sequence[str] = session.scalars(select(DeletedStudyRow.name)).all()
        if names:
            self._create_tables()
        for name in names:
            if time.monotonic() < self._retry_deletion_at.get(name, -math.inf):
                continue
            try:
                if self._delete(name):
                    with self._fence.begin() as session:
                        session.execute(delete(DeletedStudyRow).where(DeletedStudyRow.name == name))
            except SQLAlchemyError as error:
                if database_is_gone(error):
                    raise
                log.exception("optuna_study_not_deleted", study=name)
                self._retry_deletion_at[name] = time.monotonic() + MAX_PAUSE_SECONDS

    def _delete(self, name: str) -> bool:
        """Delete a study from Optuna in parts; returns whether it is gone."""
        while not self._is_stopping():
            with self._fence.begin() as session:
                if not delete_some(session, name):
                    return True
        return False

    def _create_tables(self) -> None:
        if not self._has_tables:
            with self._sessions() as session:
                complete = session.scalar(select(func.to_regclass("public.version_info"))) is not None
                # The row is written last.
                complete = complete and session.scalar(text("SELECT count(*) FROM public.version_info")) == 1
            if not complete:
                create_tables(self._engine)
            self._has_tables = True


def _enqueue_all(session: Session, study_id: int) -> None:
    """Put all trials of a study into the outbox that are not in it."""
    enqueued = exists().where(OutboxRow.trial_id == TrialRow.id)
    missing = select(TrialRow.id).where(TrialRow.study_id == study_id, ~enqueued)
    session.execute(insert(OutboxRow).from_select(["trial_id"], missing))
