"""Asks the sampler for parameters ahead of need, so that no worker waits for it."""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from sqlalchemy import and_, func, not_, or_, select
from sqlalchemy.orm import Session, sessionmaker

from coordinator.leader.election import Fence
from coordinator.optimizer import Search, inherited_trials, trial_records
from coordinator.pruning.knowledge import known_below
from coordinator.scheduling import trials
from coordinator.settings import CoordinatorSettings
from coordinator.store.conditions import among, is_open
from coordinator.store.studies import lock_study, parsed_spec
from coordinator.store.tables import StudyRow, TrialRow
from coordinator.store.views import enqueued_parameters
from services.contracts import TrialState

log = structlog.get_logger()


class Asking:
    """The samplers of running studies, kept from one trial to the next."""

    def __init__(self, sessions: sessionmaker[Session], settings: CoordinatorSettings, fence: Fence) -> None:
        self._sessions = sessions
        self._settings = settings
        self._fence = fence
        self._searches: dict[int, Search] = {}

    def keep_only(self, study_ids: Iterable[int]) -> None:
        """Forget the samplers of all other studies."""
        self._searches = {
            study_id: self._searches[study_id] for study_id in study_ids if study_id in self._searches
        }

    def ask_once(self, study_id: int) -> bool:
        """Add the study's next trial if fewer than `ask_ahead` are ready; returns whether one was added."""
        # No transaction stays open while the sampler works: read, suggest, then add under the study's lock.
        try:
            return self._ask_once(study_id)
        except Exception:
            # It may have observed only a part of the news.
            self._searches.pop(study_id, None)
            raise

    def _ask_once(self, study_id: int) -> bool:
        with self._sessions() as session:
            study = session.get_one(StudyRow, study_id)
            spec = parsed_spec(study)
            search = self._searches.get(study_id)
            if search is None:
                search = self._searches[study_id] = Search(spec, inherited_trials(session, study_id))
            of_study = TrialRow.study_id == study_id
            number = session.scalar(select(func.count()).where(of_study)) or 0
            of_state = select(func.count()).where(of_study, TrialRow.state == TrialState.READY)
            ready = session.scalar(of_state) or 0
            below = known_below(spec, number)
            known = [other for other in search.under_way if below is None or other < below]
            ended = and_(among(TrialRow.number, known), not_(is_open()))
            news = session.scalars(
                select(TrialRow)
                .where(of_study, or_(TrialRow.number >= search.n_observed, ended))
                .order_by(TrialRow.number)
            ).all()
            over = {t.number for t in news if TrialState(t.state).over and (below is None or t.number < below)}
            records = trial_records(session, study, news, over=over)
        # The database ends a session that waits inside a transaction for a sampler with a long history.
        search.observe(records)
        if ready >= self._settings.ask_ahead or number >= spec.trials:
            return False
        if below is not None and any(other < below for other in search.under_way):
            # What the trial must know is not known yet.
            return False
        with self._sessions() as session:
            enqueued = enqueued_parameters(session, study_id)
        parameters = search.suggest(number, enqueued)
        with self._fence.begin() as session:
            study = lock_study(session, study_id)
            # A configuration that was enqueued since then goes first.
            parameters = enqueued_parameters(session, study_id).get(number, parameters)
            added = trials.add_trial(session, study, parameters, number)
        if added is not None:
            log.info("trial_ready", study=study.name, trial=number, **parameters)
        return added is not None
