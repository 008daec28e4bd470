"""When a trial is not worth its remaining folds. Pure functions over the fold table: values in, values out.

A trial's curve is its running pooled accuracy: correct clips over clips after 1, 2, ... finished folds of the
study's fold order. Step n of a curve is the accuracy after n folds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from services.contracts import BoundRule, MedianRule, PruneDecision, StudySpec
from services.scores import needed_correct


@dataclass(frozen=True, kw_only=True)
class TrialProgress:
    """What of a trial is done."""

    fold: int
    """Index of the fold that was just accepted."""

    prefix: Sequence[tuple[int, int]]
    """(correct, clips) of each fold of the finished prefix of the fold order."""

    correct: int
    """Correct clips over all finished folds, in the prefix or not."""

    clips_done: int
    clips_total: int
    """Test clips of all folds of the trial."""


def decide(
    spec: StudySpec, progress: TrialProgress, complete_at_step: Callable[[int], Sequence[float]]
) -> PruneDecision | None:
    """Apply the study's rules in their order; the first that fires is the decision.

    Args:
        spec: the study.
        progress: the trial after the fold that was just accepted.
        complete_at_step: running accuracies of the complete trials after that many folds; asked only if needed.
    """
    for rule in spec.pruning:
        if isinstance(rule, BoundRule):
            decision = _bound(rule, progress)
        else:
            decision = _median(rule, spec.warmup_folds(rule), progress, complete_at_step)
        if decision is not None:
            return decision
    return None


def running_accuracy(prefix: Sequence[tuple[int, int]]) -> list[float]:
    """The curve of a trial: pooled accuracy after each fold of its prefix of (correct, clips)."""
    correct = accumulate(correct for correct, _ in prefix)
    clips = accumulate(clips for _, clips in prefix)
    return [right / seen for right, seen in zip(correct, clips, strict=True)]


def _bound(rule: BoundRule, progress: TrialProgress) -> PruneDecision | None:
    reachable = progress.clips_total - (progress.clips_done - progress.correct)
    needed = needed_correct(rule.threshold, progress.clips_total)
    if reachable >= needed:
        return None
    return PruneDecision(
        rule=rule.rule,
        fold=progress.fold,
        numbers={
            "threshold": rule.threshold,
            "errors": progress.clips_done - progress.correct,
            "errors_allowed": progress.clips_total - needed,
            "best_reachable": reachable / progress.clips_total,
        },
    )


def _median(
    rule: MedianRule, warmup: int, progress: TrialProgress, complete_at_step: Callable[[int], Sequence[float]]
) -> PruneDecision | None:
    # The semantics of optuna.pruners.MedianPruner(n_startup_trials, n_warmup_steps) with step = folds done.
    curve = running_accuracy(progress.prefix)
    step = len(curve)
    if step == 0 or step < warmup:
        return None
    others = complete_at_step(step)
    if len(others) < rule.startup_trials:
        return None
    # By numpy, as Optuna does: statistics.median can differ in the last bit, which decides ties.
    middle = float(np.percentile(others, 50))
    if max(curve) >= middle:
        return None
    return PruneDecision(
        rule=rule.rule,
        fold=step - 1,
        numbers={"best_running_accuracy": max(curve), "median": middle, "complete_trials": len(others)},
    )
