"""Our search spaces, states and trials in Optuna's terms."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from coordinator.optimizer.records import TrialRecord
from services.contracts import TrialState
from services.search_space import ParameterValue, Range, SearchSpace, TunableSettings

optuna.logging.set_verbosity(optuna.logging.WARNING)

OPTUNA_STATES = {
    TrialState.READY: OptunaState.RUNNING,
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
    TrialState.CANCELLED: OptunaState.FAIL,
}


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The distribution of each parameter of a search space."""
    return {name: _distribution(name, domain) for name, domain in space.items()}


def frozen_trial(
    known: Mapping[str, BaseDistribution],
    record: TrialRecord,
    *,
    running: bool = False,
) -> FrozenTrial:
    """Optuna's trial for a record, with the last step of its curve.

    Args:
        known: distributions of the study's space.
        record: the trial.
        running: whether it runs in Optuna, without any step.
    """
    state = OptunaState.RUNNING if running else OPTUNA_STATES[record.state]
    last = {len(record.curve): record.curve[-1]} if record.curve and not running else {}
    value = record.value if state == OptunaState.COMPLETE else None
    return create_trial(
        state=state,
        params=dict(record.parameters),
        distributions=dict(known),
        value=value,
        intermediate_values=last,
    )


def _distribution(name: str, domain: tuple[ParameterValue, ...] | Range) -> BaseDistribution:
    if not isinstance(domain, Range):
        return CategoricalDistribution(domain)
    tunable = TunableSettings.model_fields.get(name)
    if tunable is not None and tunable.annotation is int:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)
