"""Paired tests: the paper's printed folds give its p values, and SciPy's tests give ours."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cli.evaluation.paired_tests import paired_tests, signed_ranks

# Tables 4 and 5, in percent, and the p values beneath.
ON_CKPLUS = {
    "c1": [100.0] * 10,
    "c2": [93.9, 100, 84.8, 78.7, 87.8, 93.9, 93.9, 96.8, 87.5, 90],
    "c3": [96.8, 96.8, 84.8, 93.9, 87.8, 93.9, 78.7, 96.8, 87.5, 93.9],
}
ON_OULU = {
    "c2": [97.5, 97.5, 80, 82.5, 82.5, 80, 72.5, 97.5, 75, 77.5],
    "c1": [81.2, 81.2, 70.8, 75, 72.9, 72.9, 83.3, 72.9, 72.9, 87.5],
    "c4": [85, 97.5, 75, 82.5, 77.5, 70, 65, 97.5, 75, 72.5],
}
shares = st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=2, max_size=12)


@pytest.mark.parametrize(
    ("first", "second", "printed"),
    [
        (ON_CKPLUS["c1"], ON_CKPLUS["c2"], 0.00057),
        (ON_CKPLUS["c1"], ON_CKPLUS["c3"], 0.00067),
        (ON_OULU["c2"], ON_OULU["c1"], 0.03650),
        (ON_OULU["c2"], ON_OULU["c4"], 0.00597),
    ],
)
def test_the_papers_p_values_are_those_of_a_one_sided_paired_t_test(
    first: list[float], second: list[float], printed: float
) -> None:
    found = paired_tests(first, second, tested_share=1 / 9)
    assert found.one_sided == pytest.approx(printed, rel=0.05)
    assert found.one_sided is not None
    assert found.two_sided == pytest.approx(2 * found.one_sided)
    assert found.two_sided is not None
    assert found.corrected is not None
    assert found.corrected > found.two_sided, "overlapping training sets make one less sure"


@given(st.data(), st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_t_tests_are_those_of_scipy(data: st.DataObject, folds: int) -> None:
    column = st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=folds, max_size=folds)
    first, second = data.draw(column), data.draw(column)
    found = paired_tests(first, second, tested_share=1 / (folds - 1))
    if found.two_sided is None:
        assert np.ptp(np.subtract(first, second)) < 1e-9
        return
    assert found.two_sided == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=1e-9)
    greater = stats.ttest_rel(first, second, alternative="greater").pvalue
    assert found.one_sided == pytest.approx(greater, abs=1e-9)


@given(shares, st.data())
@settings(max_examples=40, deadline=None)
def test_signed_ranks_are_exact_with_ties(first: list[float], data: st.DataObject) -> None:
    second = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=len(first), max_size=len(first)))
    differences = np.subtract(first, second)
    kept = np.round(differences[np.abs(differences) > 1e-9], 9)
    found = signed_ranks(differences)
    if not len(kept):
        assert found is None
        return
    # Every way to give the differences signs, one by one.
    ranks = stats.rankdata(np.abs(kept))
    signs = (np.arange(2 ** len(kept))[:, None] >> np.arange(len(kept))) & 1
    sums, ours = signs @ ranks, ranks[kept > 0].sum()
    tail = min((sums <= ours + 1e-9).mean(), (sums >= ours - 1e-9).mean())
    assert found == pytest.approx(min(1.0, 2 * tail))


def test_signed_ranks_of_many_folds_without_ties_are_those_of_scipy() -> None:
    differences = np.random.default_rng(3).normal(0.1, 1, 118)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = stats.wilcoxon(differences, method="exact").pvalue
    assert signed_ranks(differences) == pytest.approx(exact, rel=1e-6)


def test_folds_that_cannot_be_paired_are_refused() -> None:
    for first, second in (([1.0], [1.0]), ([1.0, 0.5], [1.0])):
        with pytest.raises(ValueError, match="cannot be paired"):
            paired_tests(first, second, tested_share=0.1)


def test_folds_that_do_not_differ_say_nothing() -> None:
    found = paired_tests([0.5, 0.7, 0.9], [0.5, 0.7, 0.9], tested_share=0.5)
    assert (found.difference, found.one_sided, found.corrected, found.wilcoxon) == (0.0, None, None, None)
    constant = paired_tests([0.6, 0.8, 1.0], [0.5, 0.7, 0.9], tested_share=0.5)
    assert constant.difference == pytest.approx(0.1)
    assert constant.two_sided is None
    assert constant.wilcoxon == 0.25
