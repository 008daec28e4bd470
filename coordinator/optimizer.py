"""The only importer of Optuna: suggests parameters, and keeps Optuna's study equal to our tables.

Our tables are the truth. A suggestion is a pure function of the study, its history and the trial's number, so
it needs no memory and survives any restart; what Optuna stores is a projection for its dashboard and tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from services.contracts import StudySpec, TrialState
from services.search_space import ParameterValue, Range, SearchSpace, TunableSettings
from services.seeds import derive_seed

optuna.logging.set_verbosity(optuna.logging.WARNING)

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


def suggest(spec: StudySpec, history: Sequence[TrialRecord], number: int) -> dict[str, ParameterValue]:
    """Parameters for trial `number`: what the study enqueued, then by TPE over the history (paper section 3.3).

    The sampler is seeded by the study and the number: the same history gives the same suggestion. A pruned
    trial counts with its last running accuracy, a trial under way keeps others away (constant liar).
    """
    if number < len(spec.enqueue):
        return spec.space.tidy(spec.enqueue[number])
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=spec.sampler.startup_trials,
        n_ei_candidates=spec.sampler.candidates,
        seed=derive_seed("sampler", spec.seed, number) % 2**32,
        multivariate=spec.sampler.multivariate,
        constant_liar=spec.sampler.constant_liar,
        group=False,
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials([_frozen(spec.space, record) for record in history])
    asked = study.ask(distributions(spec.space))
    return spec.space.tidy(asked.params)


class OptunaProjection:
    """Optuna's tables in the default schema of the same PostgreSQL."""

    def __init__(self, database_url: str) -> None:
        """Create Optuna's tables where they are missing."""
        self._storage = optuna.storages.RDBStorage(
            database_url, engine_kwargs={"pool_size": 1, "max_overflow": 2, "pool_pre_ping": True}
        )
        self._studies: dict[str, optuna.Study] = {}

    def count(self, study_name: str) -> int:
        """How many trials Optuna has of a study; the study is made if it is not there."""
        try:
            return len(self._study(study_name).get_trials(deepcopy=False))
        except KeyError:
            # Somebody deleted it in Optuna. It is made anew, from our tables.
            del self._studies[study_name]
            return len(self._study(study_name).get_trials(deepcopy=False))

    def project(self, study_name: str, space: SearchSpace, record: TrialRecord) -> None:
        """Make Optuna's trial of this number equal to `record`. Repeating it changes nothing.

        Raises:
            ValueError: an earlier number is missing, or Optuna's trial of this number is another one.
        """
        study = self._study(study_name)
        have = len(study.get_trials(deepcopy=False))
        if record.number > have:
            raise ValueError(f"trial {record.number} of {study_name} cannot follow {have} trials in Optuna")
        if record.number == have:
            study.add_trial(_frozen(space, record, running=True))
        twin = study.get_trials(deepcopy=False)[record.number]
        if twin.params != dict(record.parameters):
            raise ValueError(f"trial {record.number} of {study_name} is another one in Optuna")
        if twin.state.is_finished():
            return
        live = optuna.trial.Trial(study, twin._trial_id)
        for step, accuracy in enumerate(record.curve, start=1):
            if step not in twin.intermediate_values:
                live.report(accuracy, step)
        for key, value in record.attributes.items():
            live.set_user_attr(key, value)
        if record.state.over:
            study.tell(record.number, record.value, state=_STATES[record.state])

    def _study(self, name: str) -> optuna.Study:
        if name not in self._studies:
            self._studies[name] = optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )
        return self._studies[name]


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


def _frozen(space: SearchSpace, record: TrialRecord, *, running: bool = False) -> FrozenTrial:
    state = OptunaState.RUNNING if running else _STATES[record.state]
    last = {len(record.curve): record.curve[-1]} if record.curve and not running else {}
    return create_trial(
        state=state,
        params=dict(record.parameters),
        distributions=distributions(space),
        value=record.value if state == OptunaState.COMPLETE else None,
        intermediate_values=last,
    )
