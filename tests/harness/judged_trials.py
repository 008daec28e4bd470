"""What pruning rules are asked with: a study, the first folds of a trial, and answers about the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from services.contracts import StudySpec
from services.pruning.rule import FoldTable, TrialProgress

Folds = list[tuple[int, int]]
"""(correct, clips) of each fold."""


def study(*rules: dict[str, Any], protocol: dict[str, Any] | None = None) -> StudySpec:
    return StudySpec.model_validate(
        {"name": "s", "cache": "c", "pruning": rules, "protocol": protocol or {"kind": "loso"}}
    )


def progress(done: Sequence[tuple[int, int]], clips_total: int) -> TrialProgress:
    return TrialProgress(order=range(len(done)), prefix=done, clips_total=clips_total)


def table(at_step: Callable[[int], list[float]] = lambda _step: [], **given: Callable[..., Any]) -> FoldTable:
    """A fold table that answers this, and is asked nothing else."""
    answers: dict[str, Any] = dict.fromkeys(("median_trial", "best_trial", "confusion"), never_asked)
    answers |= given
    return FoldTable(complete_at_step=at_step, **answers)


def never_asked(*_: Any) -> Any:
    raise AssertionError("asked for what no rule needs")
