"""Is one configuration better than another, fold by fold (paper section 4.3)?

Pure: fold accuracies in, p values out. The folds of a cross-validation share most of their training clips, so
the plain tests are too sure of themselves; `corrected` allows for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr
from scipy.stats import rankdata


@dataclass(frozen=True, kw_only=True)
class PairedTests:
    """What the differences of two configurations in the same folds say; null where they do not vary."""

    difference: float
    """Mean of first minus second."""

    one_sided: float | None
    """Paired t, against "the first is no better": the paper's p values."""

    two_sided: float | None
    """Paired t, against "they are equal"."""

    corrected: float | None
    """Two-sided, the variance corrected for overlapping training sets."""

    wilcoxon: float | None
    """Signed ranks, two-sided and exact; null where no fold differs."""


def paired_tests(first: Sequence[float], second: Sequence[float], *, tested_share: float) -> PairedTests:
    """Compare two configurations by their accuracies in the same folds, in the same order.

    The correction is that of Nadeau and Bengio (2003): the variance of the mean of k differences is taken to be
    (1/k + tested/trained) s^2 instead of s^2/k.

    Args:
        first: accuracy in each fold.
        second: likewise; at least two folds.
        tested_share: clips that a fold tests over those it trains on, in the mean; 1/9 for ten folds.

    Raises:
        ValueError: fewer than two folds, or not as many of each.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} folds cannot be paired")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    count, mean, deviation = len(differences), float(differences.mean()), float(differences.std(ddof=1))
    # Differences that are all the same differ by rounding still.
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
    """Two-sided p of Wilcoxon's signed-rank test, exact with ties too; null where no difference is left.

    Zeros are dropped, equal sizes share their mean rank. Fold accuracies tie all the time; SciPy then goes
    through all signs one by one up to 13 folds, which takes seconds, and from 14 on approximates. Counting how
    many signs give each sum needs neither.
    """
    kept = differences[~np.isclose(differences, 0.0, atol=1e-12)]
    if not len(kept):
        return None
    # Twice the mean ranks are whole numbers. Rounded first: accuracies that are equal as fractions tie.
    ranks = np.rint(2 * rankdata(np.round(np.abs(kept), 12))).astype(np.int64)
    total = int(ranks.sum())
    ways = np.zeros(total + 1, dtype=np.float64)
    ways[0] = 1.0
    for rank in ranks:
        ways[rank:] = (ways[rank:] + ways[:-rank]) / 2
        ways[:rank] /= 2
    positive = int(ranks[kept > 0].sum())
    tail = float(ways[: min(positive, total - positive) + 1].sum())
    return min(1.0, 2 * tail)
