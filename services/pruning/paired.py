"""The rule `paired`: prune what is worse than the median trial on the same folds, beyond chance."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field, FiniteFloat

from services.folds import SplitProtocol
from services.pruning.rule import (
    FoldTable,
    MarkColour,
    PruneDecision,
    Rule,
    StartupTrials,
    TrialProgress,
    WarmupFolds,
    warmup,
)


class PairedRule(Rule):
    """Prune a trial whose folds are worse than the same folds of the median complete trial, beyond chance.

    It prunes when the mean difference of their accuracies plus `standard_errors` of its standard errors is
    below 0.
    """

    mark: ClassVar[MarkColour] = "violet"

    rule: Literal["paired"] = "paired"
    standard_errors: FiniteFloat = Field(
        2.5,
        ge=0,
        le=100,
        description="standard errors by which the mean difference must be below 0; more prune less",
    )
    startup_trials: StartupTrials = 5
    warmup_folds: WarmupFolds = None

    def decide(
        self, progress: TrialProgress, table: FoldTable, protocol: SplitProtocol
    ) -> PruneDecision | None:
        """See `Rule`."""
        step = len(progress.prefix)
        # One difference has no standard error.
        if step < max(warmup(self.warmup_folds, protocol), 2):
            return None
        other = table.median_trial()
        if other is None or other.complete_trials < self.startup_trials:
            return None
        # Over a common denominator the differences are whole numbers, so the comparison is exact. With their
        # sum S and the sum of their squares Q over n folds, the mean is S / n and its squared standard error
        # (n Q - S^2) / (n^2 (n - 1)).
        unit = math.lcm(*(clips for _, clips in progress.prefix))
        differences = [
            (ours - theirs) * (unit // clips)
            for (ours, clips), (theirs, _) in zip(progress.prefix, other.first_folds(step), strict=True)
        ]
        total = sum(differences)
        spread = step * sum(difference**2 for difference in differences) - total**2
        factor = Fraction(repr(self.standard_errors))
        if total >= 0 or total**2 * (step - 1) <= factor**2 * spread:
            return None
        return PruneDecision(
            rule=self.rule,
            fold=progress.order[step - 1],
            numbers={
                "mean_difference": total / (step * unit),
                "standard_error": math.sqrt(Fraction(spread, (step * unit) ** 2 * (step - 1))),
                "folds": step,
                "median_trial": other.number,
                "complete_trials": other.complete_trials,
            },
        )

    def describe(self) -> str:
        """See `Rule`."""
        return f"paired, {self.standard_errors:g} standard errors"

    @property
    def compares_with_median(self) -> bool:
        """See `Rule`."""
        return True
