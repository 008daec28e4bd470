"""Suggests the parameters of a trial: what is enqueued for it, the next of a grid, or a draw of the sampler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import assert_never

import optuna
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from coordinator.optimizer.records import TrialRecord
from coordinator.optimizer.translation import OPTUNA_STATES, distributions, frozen_trial
from services.contracts import GridSampler, RandomSampler, StudySpec, TpeSampler
from services.grid import configuration, grid_axes, grid_size, shuffled
from services.search_space import ParameterValue, Range
from services.seeds import derive_seed

_IN_MEMORY = "study"


def suggest(
    spec: StudySpec,
    history: Sequence[TrialRecord],
    number: int,
    *,
    inherited: Sequence[TrialRecord] = (),
    enqueued: Mapping[int, Mapping[str, ParameterValue]] | None = None,
) -> dict[str, ParameterValue]:
    """Parameters for trial `number`: what is enqueued for it, else what the study's sampler gives.

    TPE (paper section 3.3) and random draws are seeded by the study and the number: the same history gives the
    same suggestion. For TPE a pruned trial counts with its last running score, a trial under way keeps
    suggestions away from it (constant liar), and inherited trials come before the study's own. A grid gives its
    configurations in their order, each to the next number that nothing is enqueued for.

    Args:
        spec: the study.
        history: its trials in order of their numbers.
        number: of the trial to suggest.
        inherited: ended trials of another study, in an order that does not change.
        enqueued: configurations by the number of the trial that gets them, beside those of the spec.
    """
    search = Search(spec, inherited)
    search.observe(history)
    return search.suggest(number, enqueued)


class Search:
    """A study's trials as its sampler sees them, kept from one suggestion to the next.

    It suggests what `suggest` does with the same history, without the time to pass all trials to Optuna again.
    Not safe to share between threads.
    """

    def __init__(self, spec: StudySpec, inherited: Sequence[TrialRecord] = ()) -> None:
        self.n_observed = 0
        """Number of the study's trials that it has observed."""
        self.under_way: set[int] = set()
        """Numbers of the observed trials that had not ended. The other trials do not change."""
        self._spec = spec
        self._distributions = distributions(spec.space)
        self._storage = optuna.storages.InMemoryStorage()
        optuna.create_study(storage=self._storage, study_name=_IN_MEMORY, direction="maximize")
        # The trial that parameters are drawn for. It stays waiting, so the sampler takes it for no history.
        self._drawn_for = self._add(create_trial(state=OptunaState.WAITING))
        for record in inherited:
            self._add(frozen_trial(self._distributions, record))
        self._ids: dict[int, int] = {}
        self._grid = _Grid(spec, spec.sampler) if isinstance(spec.sampler, GridSampler) else None

    def observe(self, trials: Iterable[TrialRecord]) -> None:
        """Take in new trials, in order of their numbers, and changes of those that were under way."""
        for record in trials:
            if record.number in self.under_way:
                self._update(record)
            elif record.number not in self._ids:
                over = record.state.over
                frozen = frozen_trial(self._distributions, record, running=not over)
                self._ids[record.number] = self._add(frozen)
                self.n_observed += 1
                if not over:
                    self.under_way.add(record.number)

    def suggest(
        self, number: int, enqueued: Mapping[int, Mapping[str, ParameterValue]] | None = None
    ) -> dict[str, ParameterValue]:
        """See the function `suggest`."""
        enqueued = enqueued or {}
        if number < len(self._spec.enqueue):
            return self._spec.space.canonicalize(self._spec.enqueue[number])
        if number in enqueued:
            return self._spec.space.canonicalize(enqueued[number])
        if self._grid is not None:
            before = len(self._spec.enqueue) + sum(other < number for other in enqueued)
            return self._spec.space.canonicalize(self._grid.configuration(number - before))
        return self._spec.space.canonicalize(self._draw(number))

    def _add(self, trial: FrozenTrial) -> int:
        study_id = self._storage.get_study_id_from_name(_IN_MEMORY)
        return self._storage.create_new_trial(study_id, template_trial=trial)

    def _update(self, record: TrialRecord) -> None:
        if not record.state.over:
            return
        self.under_way.remove(record.number)
        trial_id = self._ids[record.number]
        if record.curve:
            self._storage.set_trial_intermediate_value(trial_id, len(record.curve), record.curve[-1])
        values = None if record.value is None else [record.value]
        self._storage.set_trial_state_values(trial_id, OPTUNA_STATES[record.state], values)

    def _draw(self, number: int) -> dict[str, ParameterValue]:
        # As Study.ask does it, which would leave its own trial in the history. The study is loaded anew each
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


class _Grid:
    """The configurations of a study's grid in the order they are run."""

    def __init__(self, spec: StudySpec, sampler: GridSampler) -> None:
        self._axes = grid_axes(spec.space, sampler.points)
        size = grid_size(self._axes)
        lexicographic = sampler.order == "lexicographic"
        self._remaining: Iterator[int] = iter(range(size) if lexicographic else shuffled(size, spec.seed))
        self._order: list[int] = []

    def configuration(self, index: int) -> dict[str, ParameterValue]:
        """The configuration at this index of the order, from 0."""
        self._order.extend(islice(self._remaining, max(0, index + 1 - len(self._order))))
        return configuration(self._axes, self._order[index])


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
