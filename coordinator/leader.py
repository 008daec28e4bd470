"""What one coordinator does for all: end lapsed leases, ask ahead, project to Optuna, finish what was stopped.

The leader holds an advisory lock on a connection of its own and tests it every round. None of its steps is on
a request's path, and each can be repeated: a round that is cut off is done again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog
from sqlalchemy import Connection, Engine, delete, func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from coordinator import scheduling
from coordinator.fold_order import order_of
from coordinator.optimizer import OptunaProjection, TrialRecord, suggest
from coordinator.pruning import running_accuracy
from coordinator.settings import CoordinatorSettings
from coordinator.store.queries import finished_prefix, fold_counts, parsed_spec
from coordinator.store.tables import OutboxRow, StudyRow, TrialRow
from services.contracts import StudyState, TrialState

log = structlog.get_logger()

LEADER_LOCK = 0x666F6C64_00000002


class Leader(threading.Thread):
    """The background thread of a coordinator; it works only while it holds the lock."""

    def __init__(self, engine: Engine, settings: CoordinatorSettings) -> None:
        super().__init__(name="leader", daemon=True)
        self._engine = engine
        self._sessions = sessionmaker(engine, expire_on_commit=False)
        self._settings = settings
        self._wake = threading.Event()
        self._stopping = False
        self._projection: OptunaProjection | None = None
        self.is_leader = False

    def wake(self) -> None:
        """Something changed: do the next round now."""
        self._wake.set()

    def stop(self) -> None:
        """End after the round under way and give the lock back."""
        self._stopping = True
        self._wake.set()
        self.join()

    def run(self) -> None:
        """Take the lock, work while it is held, and start over when the connection breaks."""
        while not self._stopping:
            try:
                with self._engine.connect() as connection:
                    # Out of the pool: closed it gives the lock back, whatever ended the term of office.
                    connection.detach()
                    self._lead(connection)
            except SQLAlchemyError as error:
                log.warning("leader_lost_database", error=str(error).splitlines()[0])
                self.is_leader = False
                self._pause()
            except Exception:
                # A leader that ended in silence would leave the service without trials.
                log.exception("leader_failed")
                self.is_leader = False
                self._pause()

    def _lead(self, connection: Connection) -> None:
        while not self._stopping:
            self.is_leader = bool(_take_lock(connection))
            if self.is_leader:
                self.round()
            self._pause()

    def round(self) -> None:
        """Everything once. Public for tests."""
        self._expire_leases()
        self._cancel_stopped()
        self._ask_ahead()
        self._complete_studies()
        self._project_changes()

    def _pause(self) -> None:
        self._wake.wait(self._settings.leader_interval)
        self._wake.clear()

    def _expire_leases(self) -> None:
        with self._sessions.begin() as session:
            lapsed = scheduling.lapsed_leases(session)
        for lease_id in lapsed:
            with self._sessions.begin() as session:
                scheduling.expire(session, lease_id)

    def _cancel_stopped(self) -> None:
        with self._sessions() as session:
            left = session.execute(
                select(TrialRow.id, StudyRow.reason)
                .join(StudyRow, StudyRow.id == TrialRow.study_id)
                .where(
                    StudyRow.state == StudyState.STOPPED,
                    TrialRow.state.in_([TrialState.READY, TrialState.RUNNING]),
                )
                .order_by(TrialRow.id)
            ).all()
        for trial_id, reason in left:
            with self._sessions.begin() as session:
                scheduling.cancel_trial(session, trial_id, reason or "the study was stopped")

    def _ask_ahead(self) -> None:
        with self._sessions() as session:
            running = session.scalars(select(StudyRow.id).where(StudyRow.state == StudyState.RUNNING)).all()
        for study_id in running:
            with _contained("ask", study_id=study_id):
                while not self._stopping and self._ask_once(study_id):
                    pass

    def _ask_once(self, study_id: int) -> bool:
        # Long work holds no transaction: read, think, then add under the study's lock.
        with self._sessions() as session:
            study = session.get_one(StudyRow, study_id)
            spec = parsed_spec(study)
            trials = session.scalars(
                select(TrialRow).where(TrialRow.study_id == study_id).order_by(TrialRow.number)
            ).all()
            ready = sum(trial.state == TrialState.READY for trial in trials)
            if ready >= self._settings.ask_ahead or len(trials) >= spec.trials:
                return False
            history = trial_records(session, study, trials)
        parameters = suggest(spec, history, len(history))
        with self._sessions.begin() as session:
            study = session.get_one(StudyRow, study_id)
            added = scheduling.add_trial(session, study, parameters, len(history))
        if added is not None:
            log.info("trial_ready", study=study.name, trial=len(history), **parameters)
        return added is not None

    def _complete_studies(self) -> None:
        # Two trials that end at the same moment may each see the other as open; here both have ended.
        with self._sessions() as session:
            candidates = session.scalars(select(StudyRow.id).where(StudyRow.state == StudyState.RUNNING)).all()
        for study_id in candidates:
            with _contained("complete", study_id=study_id), self._sessions.begin() as session:
                scheduling.complete_if_done(session, study_id)

    def _project_changes(self) -> None:
        with self._sessions() as session:
            changed = session.execute(
                select(TrialRow.study_id, func.max(OutboxRow.seq))
                .join(TrialRow, TrialRow.id == OutboxRow.trial_id)
                .group_by(TrialRow.study_id)
            ).all()
        for study_id, seq in changed:
            with _contained("project", study_id=study_id):
                self._project_study(study_id, seq)

    def _project_study(self, study_id: int, seq: int) -> None:
        """Project what changed up to outbox row `seq`, and every trial that Optuna does not have yet.

        In the order of numbers, and no further than the first that fails: Optuna numbers by arrival.
        """
        if self._projection is None:
            self._projection = OptunaProjection(self._engine.url.render_as_string(hide_password=False))
        waiting = select(OutboxRow.trial_id).where(OutboxRow.seq <= seq)
        with self._sessions() as session:
            study = session.get_one(StudyRow, study_id)
            spec = parsed_spec(study)
            known = self._projection.count(study.name)
            trials = session.scalars(
                select(TrialRow)
                .where(TrialRow.study_id == study_id)
                .where(TrialRow.id.in_(waiting) | (TrialRow.number >= known))
                .order_by(TrialRow.number)
            ).all()
            records = trial_records(session, study, trials)
        for trial, record in zip(trials, records, strict=True):
            if self._stopping:
                return
            self._projection.project(study.name, spec.space, record)
            with self._sessions.begin() as session:
                session.execute(delete(OutboxRow).where(OutboxRow.trial_id == trial.id, OutboxRow.seq <= seq))


@contextmanager
def _contained(step: str, **what: int) -> Iterator[None]:
    """One study or trial that cannot be served must not stop the others; it is tried again next round."""
    try:
        yield
    except SQLAlchemyError:
        raise
    except Exception:
        log.exception("leader_step_failed", step=step, **what)


def trial_records(session: Session, study: StudyRow, trials: Sequence[TrialRow]) -> list[TrialRecord]:
    """Trials of a study as the sampler and the projection see them."""
    counts = fold_counts(session, [trial.id for trial in trials])
    records = []
    for trial in trials:
        attributes = {"foldwise": trial.pruned or trial.end_reason} if trial.end_reason else {}
        records.append(
            TrialRecord(
                number=trial.number,
                state=TrialState(trial.state),
                parameters=trial.parameters,
                value=trial.value,
                curve=running_accuracy(finished_prefix(counts[trial.id], order_of(session, study, trial))),
                attributes=attributes,
            )
        )
    return records


def _take_lock(connection: Connection) -> bool | None:
    # Taking a session's lock again succeeds, so this also tests that the connection still holds it.
    held = connection.execute(
        text(
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            " AND objid = :low AND granted) OR pg_try_advisory_lock(:key)"
        ),
        {"low": LEADER_LOCK & 0xFFFFFFFF, "key": LEADER_LOCK},
    ).scalar()
    connection.commit()
    return held
