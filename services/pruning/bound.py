"""The rule `bound`: prune what can no longer reach a threshold."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field, FiniteFloat

from services.folds import SplitProtocol
from services.pruning.rule import FoldTable, MarkColour, PruneDecision, Rule, TrialProgress


class BoundRule(Rule):
    """Prune a trial that cannot reach `threshold` even if every remaining clip is right. Exact, never wrong."""

    mark: ClassVar[MarkColour] = "red"

    rule: Literal["bound"] = "bound"
    threshold: FiniteFloat = Field(
        ge=0, le=1, description="minimum of the metric that a trial must be able to reach; the paper's is 0.965"
    )
    metric: Literal["accuracy", "uar", "uf1"] = Field(
        "accuracy", description="pooled accuracy, or mean recall or mean F1 of the classes, over all folds"
    )

    def decide(
        self, progress: TrialProgress, table: FoldTable, protocol: SplitProtocol
    ) -> PruneDecision | None:
        """See `Rule`."""
        if self.metric == "accuracy":
            return self._decide_on_accuracy(progress)
        # Brings numpy, which every command would load with the contracts.
        from services.scores import best_reachable

        reachable = best_reachable(*table.confusion(len(progress.prefix)), self.metric)
        # As in needed_correct, the decimal that was written counts.
        if reachable >= Fraction(repr(self.threshold)):
            return None
        return PruneDecision(
            rule=self.rule,
            fold=progress.fold,
            numbers={
                "threshold": self.threshold,
                "errors": progress.clips_done - progress.correct,
                f"best_reachable_{self.metric}": float(reachable),
            },
        )

    def describe(self) -> str:
        """See `Rule`."""
        return f"bound: {self.metric} {100 * self.threshold:.2f} % out of reach"

    @property
    def accuracy_threshold(self) -> float | None:
        """See `Rule`."""
        return self.threshold if self.metric == "accuracy" else None

    def _decide_on_accuracy(self, progress: TrialProgress) -> PruneDecision | None:
        from services.scores import needed_correct

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
