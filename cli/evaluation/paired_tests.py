"""Is one configuration better than another, fold by fold (paper section 4.3)?

Pure functions from fold accuracies to p values. The folds of a cross-validation share most of their training
clips, so the p values of the plain tests are too small; `corrected` takes this into account.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from services.signed_ranks import doubled_ranks, lower_tail


@dataclass(frozen=True, kw_only=True)
class PairedTests:
    """Tests of two configurations on the same folds; the t-tests are null if all differences are equal."""

    difference: float
    """Mean over the folds of first minus second."""

    one_sided: float | None
    """p value of the paired t-test against "the first is not better", as in the paper."""

    two_sided: float | None
    """p value of the paired t-test against "they are equal"."""

    corrected: float | None
    """Two-sided p value with the variance corrected for overlapping training sets."""

    wilcoxon: float | None
    """Two-sided exact p value of the signed-rank test; null if no fold differs."""


def paired_tests(first: Sequence[float], second: Sequence[float], *, tested_share: float) -> PairedTests:
    """Compare two configurations by their accuracies in the same folds, in the same order.

    The corrected test follows Nadeau and Bengio (2003): the variance of the mean of k differences is
    (1/k + tested/trained) s^2 instead of s^2/k.

    Args:
        first: accuracy of the first configuration in each fold; at least two folds.
        second: accuracy of the second configuration in each fold.
        tested_share: mean number of test clips divided by the number of training clips; 1/9 for ten folds.

    Raises:
        ValueError: there are fewer than two folds, or different numbers of folds.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} folds cannot be paired")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    count, mean, deviation = len(differences), float(differences.mean()), float(differences.std(ddof=1))
    # Rounding makes even equal differences vary a little.
    if deviation <= 1e-12:
        return PairedTests(
            difference=mean, one_sided=None, two_sided=None, corrected=None, wilcoxon=signed_ranks(differences)
        )
    t = mean / (deviation / math.sqrt(count))
    corrected = mean / (deviation * math.sqrt(1 / count + tested_share))
    return PairedTests(
        difference=mean,
        one_sided=float(stdtr(count - 1, -t)),
        two_sided=2 * float(stdtr(count - 1, -abs(t))),
        corrected=2 * float(stdtr(count - 1, -abs(corrected))),
        wilcoxon=signed_ranks(differences),
    )


def signed_ranks(differences: NDArray[np.float64]) -> float | None:
    """Two-sided p value of Wilcoxon's signed-rank test, exact also with ties; None if all differences are zero.

    Zeros are dropped; differences of equal size share their mean rank.
    """
    nonzero = differences[~np.isclose(differences, 0.0, atol=1e-12)]
    if not len(nonzero):
        return None
    # Rounded so that equal fractions tie.
    ranks = doubled_ranks(np.round(np.abs(nonzero), 12))
    positive = int(ranks[nonzero > 0].sum())
    tail = lower_tail(ranks, min(positive, int(ranks.sum()) - positive))
    return min(1.0, 2 * tail)
