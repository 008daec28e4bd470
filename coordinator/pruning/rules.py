"""Applies the pruning rules that a study names; each rule is a module of `services.pruning`."""

from __future__ import annotations

from collections.abc import Sequence

from services.contracts import PruneDecision, StudySpec
from services.pruning.rule import FoldTable, TrialProgress
from services.running_scores import FoldEpochs, counts_at, running_scores


def first_decision(
    spec: StudySpec,
    order: Sequence[int],
    folds: Sequence[FoldEpochs],
    clips_total: int,
    table: FoldTable,
    *,
    judged: int = 0,
) -> PruneDecision | None:
    """The decision on the shortest prefix of a trial's folds on which a rule fires.

    Each length is judged by itself, even where several folds became known at once. The decision therefore does
    not depend on the order in which folds finish. All folds together are not judged: that trial is complete.

    Args:
        spec: the study.
        order: indices of the folds as the trial runs them.
        folds: those that are finished without a gap from the first of `order`, in its order.
        clips_total: test clips of all folds.
        table: the folds of the study.
        judged: length up to which earlier calls found no decision.
    """
    running = running_scores(folds, spec.objective)
    curve = [step.value for step in running]
    for length in range(judged + 1, min(len(folds), len(order) - 1) + 1):
        progress = TrialProgress(
            order=order,
            prefix=counts_at(folds[:length], running[length - 1].epoch),
            clips_total=clips_total,
            curve=curve[:length],
            objective=spec.objective,
        )
        decision = decide(spec, progress, table)
        if decision is not None:
            return decision
    return None


def folds_judged(order: Sequence[int], decision: PruneDecision) -> Sequence[int]:
    """The folds on which a decision rests: those of its trial's order up to the decision's fold."""
    return order[: order.index(decision.fold) + 1]


def decide(spec: StudySpec, progress: TrialProgress, table: FoldTable) -> PruneDecision | None:
    """Ask the study's rules in their order; the first that fires is the decision.

    Args:
        spec: the study.
        progress: the first folds of the trial.
        table: the folds of its study.
    """
    decisions = (rule.decide(progress, table, spec.protocol) for rule in spec.pruning)
    return next((decision for decision in decisions if decision is not None), None)
