"""The rule `wilcoxon`: prune what a signed-rank test finds worse than the best trial on the same folds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import ClassVar, Literal

from pydantic import Field, FiniteFloat

from services.folds import SplitProtocol
from services.pruning.rule import FoldTable, MarkColour, PruneDecision, Rule, StartupTrials, TrialProgress


class WilcoxonRule(Rule):
    """Prune a trial that Wilcoxon's signed-rank test finds worse than the best complete trial on its folds.

    It never prunes a trial whose mean fold accuracy so far is at least that of the best trial over all folds.
    """

    mark: ClassVar[MarkColour] = "magenta"

    rule: Literal["wilcoxon"] = "wilcoxon"
    p_threshold: FiniteFloat = Field(
        0.1, ge=0, le=1, description="p value of the one-sided test below which a trial ends; more prune more"
    )
    # The best of few trials is easier to match than that of many, so the first comparisons prune least.
    startup_trials: StartupTrials = 1
    warmup_folds: int = Field(
        2, ge=0, le=100_000, description="folds of a trial that are always run; the test needs at least 2"
    )

    def decide(
        self, progress: TrialProgress, table: FoldTable, protocol: SplitProtocol
    ) -> PruneDecision | None:
        """See `Rule`."""
        # The semantics of optuna.pruners.WilcoxonPruner(p_threshold, n_startup_steps) with step = position of
        # the fold in the trial's order and value = accuracy of the fold.
        step = len(progress.prefix)
        if step < max(self.warmup_folds, 2):
            return None
        best = table.best_trial()
        if best is None or best.complete_trials < self.startup_trials:
            return None
        # Brings numpy, which every command would load with the contracts.
        from services.signed_ranks import one_sided_p_value

        ours, theirs = _accuracies(progress.prefix), _accuracies(best.folds)
        same_folds = _accuracies(best.first_folds(step))
        # Rounded as Optuna rounds them: which differences tie depends on the last bit.
        p_value = one_sided_p_value([a - b for a, b in zip(ours, same_folds, strict=True)])
        if p_value >= self.p_threshold or _mean(theirs) <= _mean(ours):
            return None
        return PruneDecision(
            rule=self.rule,
            fold=progress.fold,
            numbers={
                "p_value": p_value,
                "mean_fold_accuracy": _mean(ours),
                "mean_of_best": _mean(theirs),
                "folds": step,
                "best_trial": best.number,
                "complete_trials": best.complete_trials,
            },
        )

    def describe(self) -> str:
        """See `Rule`."""
        return f"wilcoxon, p below {self.p_threshold:g} against the best trial"


def _accuracies(folds: Sequence[tuple[int, int]]) -> list[float]:
    return [correct / clips for correct, clips in folds]


def _mean(values: Sequence[float]) -> float:
    # As in Optuna, each addition rounds; from Python 3.12 on, the sum of floats rounds once.
    return reduce(add, values) / len(values)
