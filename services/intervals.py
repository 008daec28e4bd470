"""How sure a score is: intervals around it, from counts alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from services.scores import Counts
from services.seeds import derive_seed

CONFIDENCE = 0.95
RESAMPLES = 10_000
MIN_UNITS = 2
"""Of one subject there is nothing to draw from."""

Interval = tuple[float, float]


def wilson(correct: int, clips: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of an accuracy (Wilson 1927): clips taken as independent of each other.

    Clips of one subject are not, so it is too narrow where subjects differ; `bootstrap` is then the better one.

    Raises:
        ValueError: no clips.
    """
    if clips < 1:
        raise ValueError("no clips, no interval")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / clips
    middle = (share + z * z / (2 * clips)) / (1 + z * z / clips)
    half = z * math.sqrt(share * (1 - share) / clips + z * z / (4 * clips * clips)) / (1 + z * z / clips)
    # The ends are 0 and 1 exactly where nothing or everything is right; rounding may miss them.
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == clips else middle + half)


def bootstrap(
    units: Sequence[Counts],
    score: Callable[[Counts], float],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile interval of a score over units (subjects) drawn with replacement; repeatable.

    What one subject's clips have in common is kept together (the cluster bootstrap). The network is not trained
    again: it is the interval of this model's score over other subjects, not over other trainings.

    Args:
        units: confusion counts of each subject, classes x classes.
        score: of summed counts, such as `services.scores.accuracy`.
        resamples: how many times as many units are drawn.
        confidence: of the interval.

    Raises:
        ValueError: fewer than two units.
    """
    if len(units) < MIN_UNITS:
        raise ValueError(f"{len(units)} units, a bootstrap needs {MIN_UNITS}")
    stacked = np.stack(units)
    count, flat = len(stacked), stacked.reshape(len(stacked), -1)
    generator = np.random.default_rng(derive_seed("bootstrap", flat.tolist()))
    drawn = generator.multinomial(count, [1 / count] * count, size=resamples)
    sums = (drawn @ flat).reshape(resamples, *stacked.shape[1:])
    scores = np.asarray([score(one) for one in sums])
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
