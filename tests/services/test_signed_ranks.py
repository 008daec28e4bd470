"""The signed-rank test: SciPy's p values, exact with ties too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from services.signed_ranks import doubled_ranks, lower_tail, one_sided_p_value

quarters = st.integers(-4, 4).map(lambda n: n / 4)


def scipys(differences: list[float]) -> float:
    return float(stats.wilcoxon(differences, alternative="less", zero_method="zsplit").pvalue)


@given(st.lists(quarters, min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
@example([0.0, 0.0, 0.0])
@example([-0.25] * 8)
def test_few_differences_with_ties_have_the_p_value_of_all_signs(differences: list[float]) -> None:
    assert one_sided_p_value(differences) == scipys(differences)


@pytest.mark.parametrize("differences", [[-0.5, 0.5, 0.0, -1.0] * 3, [-0.25] * 9 + [0.0] * 3 + [0.75]])
def test_the_last_numbers_of_differences_that_scipy_enumerates(differences: list[float]) -> None:
    assert one_sided_p_value(differences) == scipys(differences)


@given(st.lists(quarters, min_size=14, max_size=118))
@settings(max_examples=100, deadline=None)
@example([0.0] * 14)
@example([-0.25] * 118)
def test_many_differences_with_ties_have_the_normal_p_value(differences: list[float]) -> None:
    assert one_sided_p_value(differences) == pytest.approx(scipys(differences), rel=1e-9)


@given(st.lists(st.sampled_from([-1, 1]), min_size=2, max_size=60), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
@example([1] * 50, 0)
@example([-1] * 51, 0)
def test_differences_without_ties_have_the_exact_p_value_up_to_fifty(signs: list[int], seed: int) -> None:
    sizes = np.random.default_rng(seed).permutation(len(signs)) + 1
    differences = (sizes * signs / 64).tolist()
    assert one_sided_p_value(differences) == pytest.approx(scipys(differences), rel=1e-9)
    if len(signs) <= 50:
        assert one_sided_p_value(differences) == scipys(differences)


@given(st.lists(st.integers(0, 5).map(float), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_ranks_are_twice_those_of_scipy(sizes: list[float]) -> None:
    assert doubled_ranks(np.asarray(sizes)).tolist() == (2 * stats.rankdata(sizes)).tolist()


def test_the_tail_of_no_ranks_is_certain() -> None:
    assert lower_tail(np.zeros(0, dtype=np.int64), 0) == 1.0
