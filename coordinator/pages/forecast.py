"""Forecast of a study's remaining time, with its uncertainty."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

Z_80_PERCENT = 1.2816
"""Standard deviations on each side of the mean that contain 80 % of a normal distribution."""

MIN_FOLDS = 3
"""Minimum number of counted folds for a forecast."""


@dataclass(frozen=True, kw_only=True)
class TimeLeft:
    """Seconds until the study is complete: the expected value and an 80 % interval."""

    middle: float
    low: float
    high: float


def time_left(
    counted_at: Sequence[datetime], folds_of_ended: Sequence[int], remaining_trials: int, remaining_folds: int
) -> TimeLeft | None:
    """Forecast the remaining time; None while there is too little data.

    The forecast multiplies the number of remaining folds by the mean time between the last counted folds. Its
    interval combines the spread of folds per trial, which pruning causes, with the spread of the times.

    Args:
        counted_at: when the last folds were counted, oldest first.
        folds_of_ended: folds done in each of the last trials that ended.
        remaining_trials: trials of the budget without a finished fold.
        remaining_folds: unfinished folds of started trials, if none of these is pruned.
    """
    gaps = [(b - a).total_seconds() for a, b in pairwise(counted_at)]
    if len(counted_at) < MIN_FOLDS or (remaining_trials and not folds_of_ended):
        return None
    gap = statistics.fmean(gaps)
    gap_error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    per_trial = statistics.fmean(folds_of_ended) if folds_of_ended else 0.0
    spread = statistics.stdev(folds_of_ended) if len(folds_of_ended) > 1 else per_trial / 2
    folds = remaining_trials * per_trial + remaining_folds
    # The variance of the remaining trials, and that of their mean, which is estimated from the ended ones.
    variance = remaining_trials * spread**2
    if folds_of_ended:
        variance += (remaining_trials * spread) ** 2 / len(folds_of_ended)
    # The error of the mean gap grows with the folds; the variation of single gaps only with their square root.
    deviation = math.sqrt(variance * gap**2 + (folds * gap_error) ** 2 + folds * statistics.pvariance(gaps))
    middle = folds * gap
    return TimeLeft(
        middle=middle,
        low=max(0.0, middle - Z_80_PERCENT * deviation),
        high=middle + Z_80_PERCENT * deviation,
    )
