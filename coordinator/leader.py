"""The work that one coordinator does for all: it ends expired leases, adds trials and projects them to Optuna.

The leader holds an advisory lock on its own connection and tests it every round. No request waits for any of
its steps, and each can be repeated: a round that is cut off is done again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import structlog
from sqlalchemy import Connection, Engine, and_, delete, not_, or_, select, text, tuple_
from sqlalchemy.exc import NoResultFound, SQLAlchemyError
from sqlalchemy.orm import sessionmaker

from coordinator.events import drop_old_events
from coordinator.optimizer import OptunaProjection, ProjectionConflict, Search, inherited_trials, trial_records
from coordinator.scheduling import claims, failures, trials
from coordinator.settings import CoordinatorSettings
from coordinator.store.conditions import among, is_open
from coordinator.store.database import database_is_gone
from coordinator.store.studies import lock_study, parsed_spec
from coordinator.store.tables import DeletedStudyRow, OutboxRow, StudyRow, TrialRow
from coordinator.store.views import enqueued_parameters
from coordinator.studies import life
from services.contracts import StudyState, TrialState

log = structlog.get_logger()

LEADER_LOCK = 0x666F6C64_00000002
"""Key of the advisory lock."""

SECONDS_BETWEEN_DROPS = 60.0
"""Seconds between two deletions of old events and claims."""


class Leader(threading.Thread):
    """The background thread of a coordinator; it works only while it holds the lock."""

    def __init__(self, engine: Engine, settings: CoordinatorSettings) -> None:
        super().__init__(name="leader", daemon=True)
        self._engine = engine
        self._sessions = sessionmaker(engine, expire_on_commit=False)
        self._settings = settings
        self._wake = threading.Event()
        self._stopping = False
        self._optuna: OptunaProjection | None = None
        self._searches: dict[int, Search] = {}
        self._running_projected_at: dict[int, float] = {}
        self._dropped_at = -SECONDS_BETWEEN_DROPS
        self.is_leader = False

    def wake(self) -> None:
        """Start the next round now, because something changed."""
        self._wake.set()

    def stop(self) -> None:
        """End after the current round and release the lock."""
        self._stopping = True
        self._wake.set()
        self.join()

    def run(self) -> None:
        """Take the lock, work while it is held, and start over when the connection breaks."""
        while not self._stopping:
            try:
                with self._engine.connect() as connection:
                    # Taken out of the pool: when it closes, for whatever reason, it releases the lock.
                    connection.detach()
                    self._lead(connection)
            except SQLAlchemyError as error:
                log.warning("leader_lost_database", error=str(error).splitlines()[0])
                self.is_leader = False
                self._pause()
            except Exception:
                # If this thread ended, the service would get no more trials.
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
        """Do every duty once; one that fails does not keep the others from being done. Public for tests."""
        duties = (
            self._expire_leases,
            self._end_overdue,
            self._cancel_stopped,
            self._ask_ahead,
            self._complete_studies,
            self._forget_deleted,
            self._project_changes,
            self._drop_old_rows,
        )
        for duty in duties:
            with _contained(duty.__name__.lstrip("_")):
                duty()

    def _pause(self) -> None:
        self._wake.wait(self._settings.leader_interval)
        self._wake.clear()

    def _expire_leases(self) -> None:
        with self._sessions.begin() as session:
            expired = failures.expired_leases(session)
        for lease_id in expired:
            with _contained("expire"), self._sessions.begin() as session:
                failures.expire(session, lease_id)

    def _end_overdue(self) -> None:
        with self._sessions() as session:
            late_studies = life.overdue_studies(session)
            late_trials = trials.overdue_trials(session)
        for name, reason in late_studies:
            with _contained("stop"), self._sessions.begin() as session:
                life.stop(session, name, reason)
        for trial_id, reason in late_trials:
            with _contained("cancel", trial_id=trial_id), self._sessions.begin() as session:
                trials.cancel_trial(session, trial_id, reason)

    def _cancel_stopped(self) -> None:
        with self._sessions() as session:
            still_open = session.execute(
                select(TrialRow.id, StudyRow.reason)
                .join(StudyRow, StudyRow.id == TrialRow.study_id)
                .where(StudyRow.state == StudyState.STOPPED, is_open())
                .order_by(TrialRow.id)
            ).all()
        for trial_id, reason in still_open:
            with _contained("cancel", trial_id=trial_id), self._sessions.begin() as session:
                trials.cancel_trial(session, trial_id, reason or "the study was stopped")

    def _ask_ahead(self) -> None:
        with self._sessions() as session:
            running = session.scalars(select(StudyRow.id).where(StudyRow.state == StudyState.RUNNING)).all()
        self._searches = {
            study_id: self._searches[study_id] for study_id in running if study_id in self._searches
        }
        for study_id in running:
            with _contained("ask", study_id=study_id):
                while not self._stopping and self._ask_once(study_id):
                    pass

    def _ask_once(self, study_id: int) -> bool:
        # No transaction stays open while the sampler works: read, suggest, then add under the study's lock.
        with self._sessions() as session:
            study = session.get_one(StudyRow, study_id)
            spec = parsed_spec(study)
            search = self._searches.get(study_id)
            if search is None:
                search = self._searches[study_id] = Search(spec, inherited_trials(session, study_id))
            known = list(search.under_way.items())
            moved = and_(
                among(TrialRow.number, search.under_way),
                tuple_(TrialRow.number, TrialRow.state).not_in(known),
            )
            news = session.scalars(
                select(TrialRow)
                .where(TrialRow.study_id == study_id, or_(TrialRow.number >= search.n_observed, moved))
                .order_by(TrialRow.number)
            ).all()
            # The sampler sees the parameters of a trial under way; its curve is read once it has ended.
            ended = [trial for trial in news if TrialState(trial.state).over]
            search.observe(trial_records(session, study, news, curves_of=ended))
            ready = sum(state == TrialState.READY for state in search.under_way.values())
            number = search.n_observed
            if ready >= self._settings.ask_ahead or number >= spec.trials:
                return False
            enqueued = enqueued_parameters(session, study_id)
        parameters = search.suggest(number, enqueued)
        with self._sessions.begin() as session:
            study = lock_study(session, study_id)
            # A configuration that was enqueued since then goes first.
            parameters = enqueued_parameters(session, study_id).get(number, parameters)
            added = trials.add_trial(session, study, parameters, number)
        if added is not None:
            log.info("trial_ready", study=study.name, trial=number, **parameters)
        return added is not None

    def _complete_studies(self) -> None:
        # Two trials that end at the same time may each see the other as open; here both have ended.
        with self._sessions() as session:
            candidates = session.scalars(select(StudyRow.id).where(StudyRow.state == StudyState.RUNNING)).all()
        for study_id in candidates:
            with _contained("complete", study_id=study_id), self._sessions.begin() as session:
                trials.complete_if_done(session, study_id)

    def _forget_deleted(self) -> None:
        """Delete from Optuna the studies deleted here, before another study of such a name is projected."""
        with self._sessions() as session:
            names = session.scalars(select(DeletedStudyRow.name)).all()
        for name in names:
            with _contained("forget"):
                self._projection().delete(name)
                with self._sessions.begin() as session:
                    session.execute(delete(DeletedStudyRow).where(DeletedStudyRow.name == name))

    def _drop_old_rows(self) -> None:
        if time.monotonic() - self._dropped_at < SECONDS_BETWEEN_DROPS:
            return
        with self._sessions.begin() as session:
            drop_old_events(session)
        with self._sessions.begin() as session:
            claims.forget_claims_without_fold(session)
        self._dropped_at = time.monotonic()

    def _projection(self) -> OptunaProjection:
        if self._optuna is None:
            self._optuna = OptunaProjection(self._engine.url.render_as_string(hide_password=False))
        return self._optuna

    def _project_changes(self) -> None:
        changes: dict[int, dict[int, list[int]]] = {}
        with self._sessions() as session:
            waiting = select(TrialRow.study_id, OutboxRow.trial_id, OutboxRow.seq)
            for study_id, trial_id, seq in session.execute(
                waiting.join(TrialRow, TrialRow.id == OutboxRow.trial_id)
            ):
                changes.setdefault(study_id, {}).setdefault(trial_id, []).append(seq)
        for study_id, changed in changes.items():
            with _contained("project", study_id=study_id):
                self._project_study(study_id, changed)

    def _project_study(self, study_id: int, changed: Mapping[int, Sequence[int]]) -> None:
        """Project the trials that changed, and every trial that Optuna does not have yet.

        `changed` has the outbox rows of each trial. They were read before the trials, and only they are
        deleted: a row with a lower number can become visible later, with a change that was not seen.

        Open trials change with every fold; they are projected at most every `projection_seconds`. Trials are
        projected in the order of their numbers up to the first that fails, because Optuna numbers by arrival.
        """
        projection = self._projection()
        waiting = [among(TrialRow.id, changed)]
        now, last = time.monotonic(), self._running_projected_at.get(study_id, -math.inf)
        if now - last >= self._settings.projection_seconds:
            self._running_projected_at[study_id] = now
        else:
            waiting.append(not_(is_open()))
        with self._sessions() as session:
            study = session.get_one(StudyRow, study_id)
            spec = parsed_spec(study)
            known = projection.count(study.name)
            trials = session.scalars(
                select(TrialRow)
                .where(TrialRow.study_id == study_id)
                .where(and_(*waiting) | (TrialRow.number >= known))
                .order_by(TrialRow.number)
            ).all()
            records = trial_records(session, study, trials)
        projected: list[int] = []
        try:
            for trial, _ in zip(trials, projection.project(study.name, spec.space, records), strict=True):
                projected += changed.get(trial.id, ())
                if self._stopping:
                    break
        except ProjectionConflict as error:
            # Our tables are the truth: the next round creates Optuna's study again from them.
            log.error("optuna_study_made_anew", study=study.name, error=str(error))
            projection.delete(study.name)
            self.wake()
        finally:
            # If this is not reached, they are projected again, which changes nothing.
            if projected:
                with self._sessions.begin() as session:
                    session.execute(delete(OutboxRow).where(among(OutboxRow.seq, projected)))


@contextmanager
def _contained(step: str, **what: int) -> Iterator[None]:
    """Keep an error of one study or trial from stopping the others; the next round tries it again."""
    try:
        yield
    except NoResultFound:
        log.info("deleted_meanwhile", step=step, **what)
    except Exception as error:
        if isinstance(error, SQLAlchemyError) and database_is_gone(error):
            raise
        log.exception("leader_step_failed", step=step, **what)


def _take_lock(connection: Connection) -> bool | None:
    # A session can take its own lock again, so this also tests whether the connection still holds it.
    held = connection.execute(
        text(
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            " AND objid = :low AND granted) OR pg_try_advisory_lock(:key)"
        ),
        {"low": LEADER_LOCK & 0xFFFFFFFF, "key": LEADER_LOCK},
    ).scalar()
    connection.commit()
    return held
