"""Keeps Optuna's tables equal to ours, for its dashboard and tools."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence

import optuna
from optuna.storages._rdb.models import StudyModel, TrialIntermediateValueModel, TrialModel
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from coordinator.optimizer.records import TrialRecord
from coordinator.optimizer.translation import OPTUNA_STATES, distributions, frozen_trial
from coordinator.store.database import CONNECT_ARGS
from services.search_space import SearchSpace


class ProjectionConflict(Exception):
    """Another program wrote to Optuna's study, and adding to it cannot make it equal to ours."""


class OptunaProjection:
    """Optuna's tables in the default schema of the same PostgreSQL."""

    def __init__(self, database_url: str) -> None:
        """Create Optuna's tables where they are missing."""
        self._storage = optuna.storages.RDBStorage(
            database_url,
            engine_kwargs={
                "pool_size": 1,
                "max_overflow": 2,
                "pool_pre_ping": True,
                "connect_args": CONNECT_ARGS,
            },
        )
        self._studies: dict[str, optuna.Study] = {}
        # Optuna has no call that closes a storage.
        weakref.finalize(self, _close, self._storage)

    def count(self, study_name: str) -> int:
        """Number of trials that Optuna has of a study; creates the study if Optuna does not have it."""
        # Optuna's own count reads all trials.
        counted = (
            select(StudyModel.study_id, func.count(TrialModel.trial_id))
            .outerjoin(TrialModel, TrialModel.study_id == StudyModel.study_id)
            .where(StudyModel.study_name == study_name)
            .group_by(StudyModel.study_id)
        )
        with self._storage.engine.connect() as connection:
            study_id, trials = connection.execute(counted).one_or_none() or (None, 0)
        if study_name in self._studies and self._studies[study_name]._study_id != study_id:
            # Somebody deleted it in Optuna: it is created again, from our tables.
            del self._studies[study_name]
        self._study(study_name)
        return trials

    def project(
        self, study_name: str, space: SearchSpace, records: Sequence[TrialRecord]
    ) -> Iterator[TrialRecord]:
        """Make Optuna's trials equal to these records, one by one; yields each record once it is projected.

        Repeating it changes nothing.

        Raises:
            ProjectionConflict: Optuna lacks an earlier number, or its trial of a number is another one.
        """
        study = self._study(study_name)
        known = distributions(space)
        n_projected = self.count(study_name)
        under_way = self._under_way(study) if any(not record.state.over for record in records) else {}
        for record in records:
            if record.number > n_projected:
                raise ProjectionConflict(
                    f"trial {record.number} of {study_name} cannot follow {n_projected} trials in Optuna"
                )
            if record.number == n_projected:
                study.add_trial(frozen_trial(known, record, whole=True))
                n_projected += 1
            elif record.number in under_way and not record.state.over:
                trial_id, first = under_way[record.number]
                self._add_steps(trial_id, record.curve, first)
            else:
                self._update(study, self._trial(study, record.number), record)
            yield record

    def delete(self, study_name: str) -> None:
        """Delete Optuna's study. Repeating it changes nothing."""
        self._studies.pop(study_name, None)
        with contextlib.suppress(KeyError):
            optuna.delete_study(study_name=study_name, storage=self._storage)

    def _study(self, name: str) -> optuna.Study:
        if name not in self._studies:
            self._studies[name] = optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )
        return self._studies[name]

    def _under_way(self, study: optuna.Study) -> dict[int, tuple[int, int]]:
        """Id of each trial that runs in Optuna, and the first step that it lacks, by number."""
        # Optuna would read every step of every trial. Parameters are compared when a trial ends.
        step = TrialIntermediateValueModel.step
        wanted = (
            select(TrialModel.number, TrialModel.trial_id, func.count(step), func.coalesce(func.max(step), 0))
            .outerjoin(TrialIntermediateValueModel, TrialIntermediateValueModel.trial_id == TrialModel.trial_id)
            .where(TrialModel.study_id == study._study_id, TrialModel.state == OptunaState.RUNNING)
            .group_by(TrialModel.trial_id)
        )
        with self._storage.engine.connect() as connection:
            return {
                number: (trial_id, _first_missing(steps, last))
                for number, trial_id, steps, last in connection.execute(wanted)
            }

    def _add_steps(self, trial_id: int, curve: Sequence[float], first: int) -> None:
        # Optuna writes one step per transaction, which was most of the work of a coordinator.
        steps = [
            {
                "trial_id": trial_id,
                "step": step,
                "intermediate_value": accuracy,
                "intermediate_value_type": TrialIntermediateValueModel.TrialIntermediateValueType.FINITE,
            }
            for step, accuracy in enumerate(curve[first - 1 :], start=first)
        ]
        if steps:
            with self._storage.engine.begin() as connection:
                connection.execute(insert(TrialIntermediateValueModel).on_conflict_do_nothing(), steps)

    def _trial(self, study: optuna.Study, number: int) -> FrozenTrial:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
        return self._storage.get_trial(trial_id)

    def _update(self, study: optuna.Study, theirs: FrozenTrial, record: TrialRecord) -> None:
        """Make Optuna's trial equal to its record."""
        if theirs.params != dict(record.parameters):
            raise ProjectionConflict(
                f"trial {record.number} of {study.study_name} has other parameters in Optuna"
            )
        if theirs.state.is_finished():
            other_value = record.value is not None and theirs.value != record.value
            if theirs.state != OPTUNA_STATES[record.state] or other_value:
                raise ProjectionConflict(
                    f"trial {record.number} of {study.study_name} ended otherwise in Optuna"
                )
            return
        steps = theirs.intermediate_values
        self._add_steps(theirs._trial_id, record.curve, _first_missing(len(steps), max(steps, default=0)))
        for key, value in record.attributes.items():
            if theirs.user_attrs.get(key) != value:
                self._storage.set_trial_user_attr(theirs._trial_id, key, value)
        if record.state.over:
            study.tell(record.number, record.value, state=OPTUNA_STATES[record.state])


def _first_missing(steps: int, last: int) -> int:
    """The first step that a trial lacks; 1 where its steps have gaps.

    Args:
        steps: number of steps that it has.
        last: the last of them, 0 for none.
    """
    return steps + 1 if steps == last else 1


def _close(storage: optuna.storages.RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()
