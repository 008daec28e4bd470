"""The rule `forgiving`: prune what is on average worse than the worst fold of the best trial."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar, Literal

from services.folds import SplitProtocol
from services.pruning.rule import FoldTable, MarkColour, PruneDecision, Rule, StartupTrials, TrialProgress


class ForgivingRule(Rule):
    """Prune a trial whose mean fold accuracy so far is below the worst fold of the best complete trial.

    This is "Forgiving" of Bergman, Purucker and Hutter (2024), https://arxiv.org/abs/2405.03389. It is made for
    k-fold cross-validation.
    """

    mark: ClassVar[MarkColour] = "brown"

    rule: Literal["forgiving"] = "forgiving"
    # In the paper, trials are compared as soon as one is complete.
    startup_trials: StartupTrials = 1

    def decide(
        self, progress: TrialProgress, table: FoldTable, protocol: SplitProtocol
    ) -> PruneDecision | None:
        """See `Rule`."""
        best = table.best_trial()
        if best is None or best.complete_trials < self.startup_trials:
            return None
        ours, theirs = _accuracies(progress.prefix), _accuracies(best.folds)
        mean, worst = sum(ours, start=Fraction(0)) / len(ours), min(theirs)
        # The paper says "worse". The code of its experiments also ends a trial on equality, which would end
        # every trial with a first fold of 0 % once the best trial has one.
        if mean >= worst:
            return None
        return PruneDecision(
            rule=self.rule,
            fold=progress.fold,
            numbers={
                "mean_fold_accuracy": float(mean),
                "worst_fold_of_best": float(worst),
                "folds": len(ours),
                "best_trial": best.number,
                "complete_trials": best.complete_trials,
            },
        )

    def describe(self) -> str:
        """See `Rule`."""
        return "forgiving: mean below the worst fold of the best trial"


def _accuracies(folds: Sequence[tuple[int, int]]) -> list[Fraction]:
    return [Fraction(correct, clips) for correct, clips in folds]
