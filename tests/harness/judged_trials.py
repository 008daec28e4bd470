"""What pruning rules are asked with: a study, the first folds of a trial, and answers about the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from services.contracts import StudySpec
from services.pruning.rule import ComparedTrial, FoldTable, TrialProgress
from services.running_scores import at_one_epoch, running_scores

Folds = list[tuple[int, int]]
"""(correct, clips) of each fold."""


def study(*rules: dict[str, Any], protocol: dict[str, Any] | None = None) -> StudySpec:
    return StudySpec.model_validate(
        {"name": "s", "cache": "c", "pruning": rules, "protocol": protocol or {"kind": "loso"}}
    )


def progress(done: Sequence[tuple[int, int]], clips_total: int) -> TrialProgress:
    tested = [fold for fold in done if fold[1]]
    curve = [step.value for step in running_scores(at_one_epoch(tested), "accuracy")]
    return TrialProgress(order=range(len(done)), prefix=done, clips_total=clips_total, curve=curve)


def compared(*, number: int, complete_trials: int, folds: Sequence[tuple[int, int]]) -> ComparedTrial:
    """A complete trial whose epoch is chosen in each fold by itself."""
    return ComparedTrial(
        number=number,
        complete_trials=complete_trials,
        first_folds=lambda length: folds[:length],
        folds=folds,
    )


def table(at_step: Callable[[int], list[float]] = lambda _step: [], **given: Callable[..., Any]) -> FoldTable:
    """A fold table that answers this, and is asked nothing else."""
    answers: dict[str, Any] = dict.fromkeys(("median_trial", "best_trial", "confusions"), never_asked)
    answers |= given
    return FoldTable(complete_at_step=at_step, **answers)


def never_asked(*_: Any) -> Any:
    raise AssertionError("asked for what no rule needs")
