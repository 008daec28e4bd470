"""How long a study will take still, and how far off that may be."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

EIGHT_IN_TEN = 1.2816
"""Standard deviations of a normal distribution around its mean that hold 80 % of it."""

FOLDS_NEEDED = 3
"""Fewer say nothing about a pace."""


@dataclass(frozen=True, kw_only=True)
class TimeLeft:
    """Seconds until the study is complete: the middle, and a range that should hold eight times in ten."""

    middle: float
    low: float
    high: float


def time_left(
    counted_at: Sequence[datetime], folds_of_ended: Sequence[int], trials_to_come: int, folds_under_way: int
) -> TimeLeft | None:
    """The forecast; None while too little is known.

    The folds to come are those of a mean trial, with the spread that pruning gives ended ones; the pace is that
    of the last folds that were counted, with the spread of the pauses between them.

    Args:
        counted_at: when the last folds were counted, oldest first.
        folds_of_ended: folds done in each of the last trials that ended.
        trials_to_come: trials of the budget that no fold of is done.
        folds_under_way: folds that trials under way would still take if they were not pruned.
    """
    gaps = [(b - a).total_seconds() for a, b in pairwise(counted_at)]
    if len(counted_at) < FOLDS_NEEDED or (trials_to_come and not folds_of_ended):
        return None
    pause = statistics.fmean(gaps)
    pause_error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    per_trial = statistics.fmean(folds_of_ended) if folds_of_ended else 0.0
    spread = statistics.stdev(folds_of_ended) if len(folds_of_ended) > 1 else per_trial / 2
    folds = trials_to_come * per_trial + folds_under_way
    # Trials differ, and their mean is known from so many only.
    variance = trials_to_come * spread**2
    if folds_of_ended:
        variance += (trials_to_come * spread) ** 2 / len(folds_of_ended)
    # What single pauses add evens out over many folds; the error of their mean does not.
    deviation = math.sqrt(variance * pause**2 + (folds * pause_error) ** 2 + folds * statistics.pvariance(gaps))
    middle = folds * pause
    return TimeLeft(
        middle=middle,
        low=max(0.0, middle - EIGHT_IN_TEN * deviation),
        high=middle + EIGHT_IN_TEN * deviation,
    )
