"""Asks the sampler for parameters ahead of need, so that no worker waits for it."""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from sqlalchemy import and_, or_, select, tuple_
from sqlalchemy.orm import Session, sessionmaker

from coordinator.leader.election import Fence
from coordinator.optimizer import Search, inherited_trials, trial_records
from coordinator.scheduling import trials
from coordinator.settings import CoordinatorSettings
from coordinator.store.conditions import among
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
            records = trial_records(session, study, news, curves_of=ended)
        # The database ends a session that waits inside a transaction for a sampler with a long history.
        search.observe(records)
        ready = sum(state == TrialState.READY for state in search.under_way.values())
        number = search.n_observed
        if ready >= self._settings.ask_ahead or number >= spec.trials:
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
