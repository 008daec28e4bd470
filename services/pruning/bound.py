"""The rule `bound`: prune what can no longer reach a threshold."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field, FiniteFloat

from services.contracts.base import Objective
from services.folds import SplitProtocol
from services.pruning.rule import FoldTable, MarkColour, PruneDecision, Rule, TrialProgress


class BoundRule(Rule):
    """Prune a trial that cannot reach `threshold` even if every remaining clip is right. Exact, never wrong."""

    mark: ClassVar[MarkColour] = "red"

    rule: Literal["bound"] = "bound"
    threshold: FiniteFloat = Field(
        ge=0, le=1, description="minimum of the metric that a trial must be able to reach; the paper's is 0.965"
    )
    metric: Objective | None = Field(
        None,
        description="accuracy, uar or uf1 over all folds; null: what the study maximises",
    )

    def decide(
        self, progress: TrialProgress, table: FoldTable, protocol: SplitProtocol
    ) -> PruneDecision | None:
        """See `Rule`."""
        metric = self.metric or progress.objective
        if metric == progress.objective == "accuracy":
            return self._decide_on_accuracy(progress)
        # Brings numpy, which every command would load with the contracts.
        from services.scores import best_reachable

        at_epochs, remaining = table.confusions(len(progress.prefix))
        # Another epoch than the best so far may become the best; at none is more within reach than this.
        reachable = max(best_reachable(counts, remaining, metric) for counts in at_epochs)
        # As in needed_correct, the decimal that was written counts.
        if reachable >= Fraction(repr(self.threshold)):
            return None
        return PruneDecision(
            rule=self.rule,
            fold=progress.fold,
            numbers={
                "threshold": self.threshold,
                "errors": progress.clips_done - progress.correct,
                f"best_reachable_{metric}": float(reachable),
            },
        )

    def describe(self) -> str:
        """See `Rule`."""
        of_metric = "" if self.metric is None else f"{self.metric} "
        return f"bound: {of_metric}{100 * self.threshold:.2f} % out of reach"

    def drawn_threshold(self, objective: Objective) -> float | None:
        """See `Rule`."""
        return self.threshold if self.metric in {None, objective} else None

    def _decide_on_accuracy(self, progress: TrialProgress) -> PruneDecision | None:
        from services.scores import needed_correct

        # At the best epoch so far; at every other, no more is within reach.
        reachable = progress.clips_total - (progress.clips_done - progress.correct)
        needed = needed_correct(self.threshold, progress.clips_total)
        if reachable >= needed:
            return None
        return PruneDecision(
            rule=self.rule,
            fold=progress.fold,
            numbers={
                "threshold": self.threshold,
                "errors": progress.clips_done - progress.correct,
                "errors_allowed": progress.clips_total - needed,
                "best_reachable": reachable / progress.clips_total,
            },
        )
