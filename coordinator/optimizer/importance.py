"""How much each parameter matters among a study's trials."""

from __future__ import annotations

from collections.abc import Sequence

import optuna

from coordinator.optimizer.records import TrialRecord
from coordinator.optimizer.translation import distributions, frozen_trial
from services.search_space import SearchSpace


def importances(space: SearchSpace, trials: Sequence[TrialRecord]) -> dict[str, float]:
    """How much each parameter of a space matters, the most important first; they sum to 1.

    PED-ANOVA (Watanabe, Bansal, Hutter, IJCAI 2023): how differently the better tenth of the trials and all of
    them are spread over its values. Parameters that have one value, in the space or in the trials, are left
    out. It takes some tenths of a second for a thousand trials, so it must not run in an event loop.

    Args:
        space: of the study.
        trials: its trials; only complete ones count, and with fewer than two the result is empty.
    """
    complete = [trial for trial in trials if trial.value is not None]
    if len({trial.value for trial in complete}) < 2:
        return {}
    known = distributions(space)
    study = optuna.create_study(direction="maximize")
    study.add_trials([frozen_trial(known, trial) for trial in complete])
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
