"""Objectives over the paper's search space, made up at random."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from statistics import NormalDist

import numpy as np

from benchmarks.delay.workers import FASTEST_SECONDS, SECONDS_RATIO
from services.search_space import ParameterValue, Range, paper_space
from services.seeds import derive_seed

SKILL, SKILL_DEVIATION, NOISE_DEVIATION = 2.5, 0.5, 0.2
"""In logits of the accuracy: mean and deviation over the space, and deviation of a trial's noise."""

INTERACTION = 0.3
"""Deviation of the weight of a pair of parameters; that of a single parameter is 1."""

SAMPLED = 2000
"""Number of random configurations by which a function is scaled."""

STEPS = 1001
"""Number of values by which a range is represented."""

Domain = tuple[ParameterValue, ...] | Range


class SimulatedSpace:
    """An accuracy and a duration for each configuration of `paper_space()`; the same seed gives the same.

    The logit of the accuracy is a sum over parameters and over pairs of parameters. Options contribute what is
    drawn for them at random; numbers (temporal size, dropout) contribute smoothly. Random configurations have a
    mean accuracy near 92 %, the best ones 97 to 99 %. Noise has a deviation of 0.4 percentage points at 98 %
    and of 1.5 at 92 %; equal parameters get equal noise, as their folds get equal seeds. The duration is
    another such sum, scaled to be log-uniform.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        rng = np.random.default_rng(seed)
        self._skill = _RandomFunction(rng)
        self._duration = _RandomFunction(rng)

    def accuracy(self, parameters: Mapping[str, ParameterValue], *, noise: bool) -> float:
        """Accuracy (0 to 1) of a trial, with its noise or without."""
        skill = SKILL + SKILL_DEVIATION * self._skill(parameters)
        if noise:
            rng = np.random.default_rng(derive_seed("noise", self._seed, dict(parameters)))
            skill += NOISE_DEVIATION * rng.standard_normal()
        return 1 / (1 + exp(-skill))

    def seconds(self, parameters: Mapping[str, ParameterValue]) -> float:
        """Seconds of a trial on one worker."""
        seconds: float = FASTEST_SECONDS * SECONDS_RATIO ** NormalDist().cdf(self._duration(parameters))
        return seconds


class _RandomFunction:
    """A function of the parameters with mean 0 and deviation 1 over the space."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._domains = dict(paper_space().items())
        size = len(self._domains)
        self._features = {name: _features(domain, rng) for name, domain in self._domains.items()}
        self._weights = rng.normal(0, 1, size)
        self._pairs = np.triu(rng.normal(0, INTERACTION, (size, size)), 1)
        self._mean, self._deviation = 0.0, 1.0
        sample = [self(_random_parameters(self._domains, rng)) for _ in range(SAMPLED)]
        self._mean, self._deviation = float(np.mean(sample)), float(np.std(sample))

    def __call__(self, parameters: Mapping[str, ParameterValue]) -> float:
        own, paired = np.transpose(
            [self._features[name][_index(domain, parameters[name])] for name, domain in self._domains.items()]
        )
        return float((own @ self._weights + paired @ self._pairs @ paired - self._mean) / self._deviation)


def _features(domain: Domain, rng: np.random.Generator) -> np.ndarray:
    """Two features of each value of a parameter, of shape (values, 2), float64."""
    if isinstance(domain, Range):
        return _smooth(STEPS, rng)
    numbers = all(isinstance(option, int) and not isinstance(option, bool) for option in domain)
    return _smooth(len(domain), rng) if numbers else rng.standard_normal((len(domain), 2))


def _smooth(values: int, rng: np.random.Generator) -> np.ndarray:
    """Two sums of a half and a whole wave over the values, of shape (values, 2), float64."""
    waves = np.arange(1, 3) * np.pi * np.linspace(0, 1, values)[:, None]
    return np.cos(waves + rng.uniform(0, 2 * np.pi, 2)) @ rng.standard_normal((2, 2))


def _index(domain: Domain, value: ParameterValue) -> int:
    if isinstance(domain, Range):
        return round((float(value) - domain.low) / (domain.high - domain.low) * (STEPS - 1))
    return domain.index(value)


def _random_parameters(domains: Mapping[str, Domain], rng: np.random.Generator) -> dict[str, ParameterValue]:
    return {
        name: rng.uniform(domain.low, domain.high)
        if isinstance(domain, Range)
        else domain[rng.integers(len(domain))]
        for name, domain in domains.items()
    }
