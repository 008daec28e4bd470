"""The only importer of Optuna: suggests parameters, and keeps Optuna's study equal to our tables.

Our tables are the truth. A suggestion is a pure function of the study, its history and the trial's number, so
it needs no memory and survives any restart; what Optuna stores is a projection for its dashboard and tools.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, assert_never

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages._rdb.models import StudyModel, TrialIntermediateValueModel, TrialModel
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from coordinator.store.database import CONNECT_ARGS
from services.contracts import GridSampler, RandomSampler, StudySpec, TpeSampler, TrialState
from services.grid import configuration, grid_axes, grid_size, shuffled
from services.search_space import ParameterValue, Range, SearchSpace, TunableSettings
from services.seeds import derive_seed

optuna.logging.set_verbosity(optuna.logging.WARNING)

_IN_MEMORY = "study"

_STATES = {
    TrialState.READY: OptunaState.RUNNING,
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
    TrialState.CANCELLED: OptunaState.FAIL,
}


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial as the sampler and the projection see it."""

    number: int
    state: TrialState
    parameters: Mapping[str, ParameterValue]
    value: float | None
    """Pooled accuracy of a complete trial."""

    curve: Sequence[float] = ()
    """Running accuracy after 1, 2, ... folds of the finished prefix."""

    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Shown with the trial in Optuna's dashboard."""


def suggest(
    spec: StudySpec,
    history: Sequence[TrialRecord],
    number: int,
    *,
    inherited: Sequence[TrialRecord] = (),
    enqueued: Mapping[int, Mapping[str, ParameterValue]] | None = None,
) -> dict[str, ParameterValue]:
    """Parameters for trial `number`: what is enqueued for it, else by the study's sampler.

    TPE (paper section 3.3) and random draws are seeded by the study and the number: the same history gives the
    same suggestion. To TPE a pruned trial counts with its last running accuracy, a trial under way keeps others
    away (constant liar), and inherited trials come before the study's own. A grid gives its configurations in
    their order, each to the next number that nothing is enqueued for.

    Args:
        spec: the study.
        history: its trials in order of their numbers.
        number: of the trial to suggest.
        inherited: ended trials of another study, in an order that does not change.
        enqueued: configurations by the number of the trial that will have them, beside those of the spec.
    """
    search = Search(spec, inherited)
    search.hear(history)
    return search.suggest(number, enqueued)


def importances(space: SearchSpace, trials: Sequence[TrialRecord]) -> dict[str, float]:
    """How much each parameter of a space matters, the most important first; they sum to 1.

    PED-ANOVA (Watanabe, Bansal, Hutter, IJCAI 2023): how differently the better tenth of the trials and all of
    them are spread over its values. Parameters with one value, and those that the trials had one value of, are
    left out.
    Takes some tenths of a second for a thousand trials; not for an event loop.

    Args:
        space: of the study.
        trials: complete ones; of others, and with fewer than two, nothing follows.
    """
    complete = [trial for trial in trials if trial.value is not None]
    if len({trial.value for trial in complete}) < 2:
        return {}
    known = distributions(space)
    study = optuna.create_study(direction="maximize")
    study.add_trials([_frozen(known, trial) for trial in complete])
    varied = [
        name
        for name, distribution in known.items()
        if not distribution.single() and len({trial.parameters[name] for trial in complete}) > 1
    ]
    if not varied:
        return {}
    return optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), params=varied
    )


class Search:
    """A study's trials as its sampler sees them, kept from one suggestion to the next.

    It suggests what `suggest` does with the same history: it saves the time to tell Optuna everything again.
    """

    def __init__(self, spec: StudySpec, inherited: Sequence[TrialRecord] = ()) -> None:
        self.heard = 0
        """Of so many trials of the study it has heard."""
        self.under_way: dict[int, TrialState] = {}
        """Those that had not ended then, by number. Of the others there is nothing new to hear."""
        self._spec = spec
        self._distributions = distributions(spec.space)
        self._storage = optuna.storages.InMemoryStorage()
        optuna.create_study(storage=self._storage, study_name=_IN_MEMORY, direction="maximize")
        # The trial that parameters are drawn for. It waits for ever, so to the sampler it is no history.
        self._drawn_for = self._add(create_trial(state=OptunaState.WAITING))
        for record in inherited:
            self._add(_frozen(self._distributions, record))
        self._ids: dict[int, int] = {}
        self._grid = _Grid(spec) if isinstance(spec.sampler, GridSampler) else None

    def hear(self, trials: Iterable[TrialRecord]) -> None:
        """Take in new trials, in order of their numbers, and what became of those that were under way."""
        for record in trials:
            if record.number in self.under_way:
                self._go_on(record)
            elif record.number not in self._ids:
                over = record.state.over
                frozen = _frozen(self._distributions, record, running=not over)
                self._ids[record.number] = self._add(frozen)
                self.heard += 1
                if not over:
                    self.under_way[record.number] = record.state

    def suggest(
        self, number: int, enqueued: Mapping[int, Mapping[str, ParameterValue]] | None = None
    ) -> dict[str, ParameterValue]:
        """See the function `suggest`."""
        enqueued = enqueued or {}
        if number < len(self._spec.enqueue):
            return self._spec.space.tidy(self._spec.enqueue[number])
        if number in enqueued:
            return self._spec.space.tidy(enqueued[number])
        if self._grid is not None:
            before = len(self._spec.enqueue) + sum(other < number for other in enqueued)
            return self._spec.space.tidy(self._grid.configuration(number - before))
        return self._spec.space.tidy(self._draw(number))

    def _add(self, trial: FrozenTrial) -> int:
        study_id = self._storage.get_study_id_from_name(_IN_MEMORY)
        return self._storage.create_new_trial(study_id, template_trial=trial)

    def _go_on(self, record: TrialRecord) -> None:
        if not record.state.over:
            self.under_way[record.number] = record.state
            return
        del self.under_way[record.number]
        trial_id = self._ids[record.number]
        if record.curve:
            self._storage.set_trial_intermediate_value(trial_id, len(record.curve), record.curve[-1])
        values = None if record.value is None else [record.value]
        self._storage.set_trial_state_values(trial_id, _STATES[record.state], values)

    def _draw(self, number: int) -> dict[str, ParameterValue]:
        # As Study.ask does it, which would leave a trial of its own in the history. The study is made anew each
        # time, because it keeps the trials that a sampler has read.
        study = optuna.load_study(study_name=_IN_MEMORY, storage=self._storage)
        sampler = _sampler(self._spec, number)
        trial = self._storage.get_trial(self._drawn_for)
        drawn = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
        for name, domain in self._spec.space.items():
            if not isinstance(domain, Range) and len(domain) == 1:
                drawn[name] = domain[0]
            elif name not in drawn:
                drawn[name] = sampler.sample_independent(study, trial, name, self._distributions[name])
        return drawn


class WrongTwin(Exception):
    """Somebody else wrote to Optuna's study: it cannot be made equal to ours by adding to it."""


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
        # Optuna has no word for it.
        weakref.finalize(self, _close, self._storage)

    def count(self, study_name: str) -> int:
        """How many trials Optuna has of a study; the study is made if it is not there."""
        # Optuna counts by reading them all.
        counted = (
            select(StudyModel.study_id, func.count(TrialModel.trial_id))
            .outerjoin(TrialModel, TrialModel.study_id == StudyModel.study_id)
            .where(StudyModel.study_name == study_name)
            .group_by(StudyModel.study_id)
        )
        with self._storage.engine.connect() as connection:
            study_id, trials = connection.execute(counted).one_or_none() or (None, 0)
        if study_name in self._studies and self._studies[study_name]._study_id != study_id:
            # Somebody deleted it in Optuna. It is made anew, from our tables.
            del self._studies[study_name]
        self._study(study_name)
        return trials

    def project(
        self, study_name: str, space: SearchSpace, records: Sequence[TrialRecord]
    ) -> Iterator[TrialRecord]:
        """Make Optuna's trials equal to these records, one by one; gives each once it is done.

        Repeating it changes nothing.

        Raises:
            WrongTwin: an earlier number is missing, or Optuna's trial of a number is another one.
        """
        study = self._study(study_name)
        known = distributions(space)
        have = self.count(study_name)
        under_way = self._under_way(study) if any(not record.state.over for record in records) else {}
        for record in records:
            if record.number > have:
                raise WrongTwin(f"trial {record.number} of {study_name} cannot follow {have} trials in Optuna")
            if record.number == have:
                study.add_trial(_frozen(known, record, whole=True))
                have += 1
            elif record.number in under_way and not record.state.over:
                trial_id, first = under_way[record.number]
                self._add_steps(trial_id, record.curve, first)
            else:
                self._mend(study, self._trial(study, record.number), record)
            yield record

    def _under_way(self, study: optuna.Study) -> dict[int, tuple[int, int]]:
        """Optuna's id of each trial that runs there, and the first step that it lacks, by number."""
        # Optuna reads every step of every trial for that. Their parameters are looked at when they end.
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

    def _trial(self, study: optuna.Study, number: int) -> FrozenTrial:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
        return self._storage.get_trial(trial_id)

    def _mend(self, study: optuna.Study, twin: FrozenTrial, record: TrialRecord) -> None:
        if twin.params != dict(record.parameters):
            raise WrongTwin(f"trial {record.number} of {study.study_name} has other parameters in Optuna")
        if twin.state.is_finished():
            if twin.state != _STATES[record.state] or (record.value is not None and twin.value != record.value):
                raise WrongTwin(f"trial {record.number} of {study.study_name} ended otherwise in Optuna")
            return
        steps = twin.intermediate_values
        self._add_steps(twin._trial_id, record.curve, _first_missing(len(steps), max(steps, default=0)))
        for key, value in record.attributes.items():
            if twin.user_attrs.get(key) != value:
                self._storage.set_trial_user_attr(twin._trial_id, key, value)
        if record.state.over:
            study.tell(record.number, record.value, state=_STATES[record.state])

    def _add_steps(self, trial_id: int, curve: Sequence[float], first: int) -> None:
        # Optuna writes one at a time, each in a transaction; they were most of the work of a coordinator.
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


def _first_missing(steps: int, last: int) -> int:
    """The first step that a trial of so many steps lacks, or the first of all where there are gaps."""
    return steps + 1 if steps == last else 1


def _close(storage: optuna.storages.RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Optuna's words for a search space."""
    return {name: _distribution(name, domain) for name, domain in space.items()}


def _distribution(name: str, domain: tuple[ParameterValue, ...] | Range) -> BaseDistribution:
    if not isinstance(domain, Range):
        return CategoricalDistribution(domain)
    tunable = TunableSettings.model_fields.get(name)
    if tunable is not None and tunable.annotation is int:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def _frozen(
    known: Mapping[str, BaseDistribution],
    record: TrialRecord,
    *,
    running: bool = False,
    whole: bool = False,
) -> FrozenTrial:
    """Optuna's trial; of its curve the last step, or with `whole` every step and the attributes."""
    state = OptunaState.RUNNING if running else _STATES[record.state]
    steps = dict(enumerate(record.curve, start=1)) if not running else {}
    last = {len(steps): steps[len(steps)]} if steps else {}
    value = record.value if state == OptunaState.COMPLETE else None
    if whole and state == OptunaState.PRUNED and record.curve:
        # As Optuna does when it is told of a pruned trial.
        value = record.curve[-1]
    return create_trial(
        state=state,
        params=dict(record.parameters),
        distributions=dict(known),
        value=value,
        intermediate_values=steps if whole else last,
        user_attrs=dict(record.attributes) if whole else None,
    )


def _sampler(spec: StudySpec, number: int) -> optuna.samplers.BaseSampler:
    seed = derive_seed("sampler", spec.seed, number) % 2**32
    match spec.sampler:
        case TpeSampler():
            return optuna.samplers.TPESampler(
                n_startup_trials=spec.sampler.startup_trials,
                n_ei_candidates=spec.sampler.candidates,
                seed=seed,
                multivariate=spec.sampler.multivariate,
                constant_liar=spec.sampler.constant_liar,
                group=False,
            )
        case RandomSampler():
            return optuna.samplers.RandomSampler(seed=seed)
        case GridSampler():
            raise AssertionError("a grid gives its configurations in order and draws none")
        case _:
            assert_never(spec.sampler)


class _Grid:
    """The configurations of a study's grid in the order they are run."""

    def __init__(self, spec: StudySpec) -> None:
        assert isinstance(spec.sampler, GridSampler)  # noqa: S101 - built for nothing else
        self._axes = grid_axes(spec.space, spec.sampler.points)
        size = grid_size(self._axes)
        order = spec.sampler.order
        self._rest: Iterator[int] = iter(range(size) if order == "lexicographic" else shuffled(size, spec.seed))
        self._order: list[int] = []

    def configuration(self, place: int) -> dict[str, ParameterValue]:
        """The configuration that is run in this place, from 0."""
        self._order.extend(islice(self._rest, max(0, place + 1 - len(self._order))))
        return configuration(self._axes, self._order[place])
