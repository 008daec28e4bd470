"""The rule `forgiving` compares the mean of the folds so far with the worst fold of the best trial, exactly."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.pruning.rules import decide
from services.contracts import PruneDecision
from services.pruning.rule import FoldTable
from tests.harness.judged_trials import Folds, compared, progress, study, table

FORGIVING = {"rule": "forgiving"}


def with_best(folds: Folds, *, complete: int = 1) -> FoldTable:
    """A fold table whose best trial has these folds."""
    return table(best_trial=lambda: compared(number=3, complete_trials=complete, folds=folds))


@st.composite
def two_trials(draw: st.DrawFn) -> tuple[Folds, Folds]:
    """The first folds of a trial, and the folds of the best trial on the same clips."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=10))
    ours, theirs = ([(draw(st.integers(0, n)), n) for n in sizes] for _ in range(2))
    return ours[: draw(st.integers(1, len(sizes) - 1))], theirs


@given(two_trials())
@settings(max_examples=200, deadline=None)
# In floating point, the mean of these two is below 5/6.
@example(([(1, 1), (2, 3)], [(1, 1), (3, 3), (5, 6)]))
def test_a_trial_is_pruned_where_its_mean_is_below_the_worst_fold_of_the_best(
    trials: tuple[Folds, Folds],
) -> None:
    ours, theirs = trials
    decision = decide(study(FORGIVING), progress(ours, 60), with_best(theirs))
    mean = sum((Fraction(*fold) for fold in ours), start=Fraction(0)) / len(ours)
    worst = min(Fraction(*fold) for fold in theirs)
    assert (decision is not None) == (mean < worst)
    if decision is not None:
        assert decision == PruneDecision(
            rule="forgiving",
            fold=len(ours) - 1,
            numbers={
                "mean_fold_accuracy": float(mean),
                "worst_fold_of_best": float(worst),
                "folds": len(ours),
                "best_trial": 3,
                "complete_trials": 1,
            },
        )


def test_every_fold_has_the_same_weight() -> None:
    best = [(1, 2)] * 3
    assert decide(study(FORGIVING), progress([(0, 1), (10, 10)], 60), with_best(best)) is None
    assert decide(study(FORGIVING), progress([(9, 10), (0, 1)], 60), with_best(best)) is not None


def test_the_worst_fold_of_the_best_trial_may_be_one_that_the_trial_has_not_run() -> None:
    so_far = progress([(4, 10), (4, 10)], 60)
    assert decide(study(FORGIVING), so_far, with_best([(9, 10), (9, 10), (5, 10)])) is not None
    assert decide(study(FORGIVING), so_far, with_best([(9, 10), (9, 10), (3, 10)])) is None


def test_a_trial_as_bad_as_the_worst_fold_goes_on_even_at_zero() -> None:
    assert decide(study(FORGIVING), progress([(0, 2)], 60), with_best([(2, 2), (0, 2)])) is None


@pytest.mark.parametrize(("startup", "complete", "prunes"), [(1, 1, True), (3, 2, False), (3, 3, True)])
def test_it_waits_for_start_up_trials(startup: int, complete: int, prunes: bool) -> None:
    spec = study({**FORGIVING, "startup_trials": startup})
    decision = decide(spec, progress([(0, 2)], 60), with_best([(2, 2)] * 3, complete=complete))
    assert (decision is not None) == prunes


def test_without_a_complete_trial_nothing_is_pruned() -> None:
    assert decide(study(FORGIVING), progress([(0, 2)], 60), table(best_trial=lambda: None)) is None


def test_it_names_the_last_fold_of_the_trials_own_order() -> None:
    so_far = replace(progress([(0, 2), (0, 2)], 10), order=[4, 2, 0, 1, 3])
    decision = decide(study(FORGIVING), so_far, with_best([(2, 2)] * 5))
    assert decision is not None
    assert decision.fold == 2
