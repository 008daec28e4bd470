"""The order that is learnt: a permutation, hardest folds first, the lower index on ties."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.pruning.fold_order import hardest_first

Folds = list[tuple[int, int]]


@st.composite
def complete_trials(draw: st.DrawFn) -> list[Folds]:
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=12))
    return [[(draw(st.integers(0, n)), n) for n in sizes] for _ in range(draw(st.integers(1, 5)))]


@given(complete_trials())
@example([[(1, 1), (1, 2), (2, 4), (0, 1)]])
def test_folds_are_ordered_by_their_mean_accuracy_and_equal_ones_by_index(trials: list[Folds]) -> None:
    order = hardest_first(trials)
    assert sorted(order) == list(range(len(trials[0])))
    mean = [
        sum((Fraction(*trial[fold]) for trial in trials), start=Fraction(0)) / len(trials) for fold in order
    ]
    for place in range(1, len(order)):
        assert (mean[place - 1], order[place - 1]) < (mean[place], order[place])
