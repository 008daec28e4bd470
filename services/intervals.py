"""Confidence intervals of scores, computed from counts alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from services.scores import Counts
from services.seeds import derive_seed

CONFIDENCE = 0.95
"""Coverage of an interval (0 to 1)."""

RESAMPLES = 10_000
"""Number of bootstrap samples."""

MIN_UNITS = 2
"""Minimum number of subjects for a bootstrap."""

Interval = tuple[float, float]
"""Lower and upper end."""


def wilson(correct: int, clips: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of an accuracy (Wilson 1927), which takes clips as independent of each other.

    Clips of one subject are not, so it is too narrow if subjects differ; then use `bootstrap`.

    Raises:
        ValueError: no clips.
    """
    if clips < 1:
        raise ValueError("an interval needs at least one clip")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / clips
    middle = (share + z * z / (2 * clips)) / (1 + z * z / clips)
    half = z * math.sqrt(share * (1 - share) / clips + z * z / (4 * clips * clips)) / (1 + z * z / clips)
    # The ends are exactly 0 and 1 if no clip or every clip is correct; rounding may miss them.
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == clips else middle + half)


def bootstrap(
    units: Sequence[Counts],
    score: Callable[[Counts], float],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile interval of a score over units (subjects) drawn with replacement; repeatable.

    The clips of one subject stay together (the cluster bootstrap). The network is not trained again: the
    interval is that of this model's score over other subjects, not over other trainings.

    Args:
        units: confusion counts of each subject, int64, classes x classes.
        score: computes the score from summed counts, such as `services.scores.accuracy`.
        resamples: number of bootstrap samples; each draws as many units as there are.
        confidence: coverage of the interval (0 to 1).

    Raises:
        ValueError: fewer than two units.
    """
    if len(units) < MIN_UNITS:
        raise ValueError(f"a bootstrap needs at least {MIN_UNITS} units, got {len(units)}")
    stacked = np.stack(units)
    count, flat = len(stacked), stacked.reshape(len(stacked), -1)
    generator = np.random.default_rng(derive_seed("bootstrap", flat.tolist()))
    drawn = generator.multinomial(count, [1 / count] * count, size=resamples)
    sums = (drawn @ flat).reshape(resamples, *stacked.shape[1:])
    scores = np.asarray([score(one) for one in sums])
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
