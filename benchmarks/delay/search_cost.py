"""What the sampler loses if it knows of a trial only after a delay.

Every trial is suggested by the coordinator's own `Search` with the defaults of a study: TPE on the paper's
space. Nothing is pruned. With a delay, a study is a function of numbers, so that it needs no workers; without
one, simulated workers say which trials have ended when a trial is suggested.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.delay.spaces import SimulatedSpace
from benchmarks.delay.workers import TrialToRun, run_study
from coordinator.optimizer import Search, TrialRecord
from coordinator.pruning.knowledge import known_below
from services.contracts import StudySpec, TrialState
from services.search_space import ParameterValue


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a search runs."""

    delay: int | None
    """Feedback delay; None: a trial knows whatever has ended."""

    workers: int = 1
    """Number of workers; with a delay it changes nothing."""

    sampler: Literal["tpe", "random"] = "tpe"

    @property
    def name(self) -> str:
        """Its name in tables and in JSON."""
        if self.sampler == "random":
            return "random draws"
        return f"null, {self.workers} workers" if self.delay is None else f"d = {self.delay}"


SEQUENTIAL = Variant(delay=0)
VARIANTS = (
    *(Variant(delay=delay) for delay in (0, 8, 16, 32, 64, 128)),
    *(Variant(delay=None, workers=workers) for workers in (4, 16)),
    Variant(delay=0, sampler="random"),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search had found after a number of trials."""

    best: float
    """Highest accuracy of a trial (0 to 1), with its noise."""

    noiseless: float
    """Accuracy of the same trial without its noise."""


def run_search(variant: Variant, *, trials: int, seed: int) -> list[dict[str, ParameterValue]]:
    """Parameters of all trials of a search in `SimulatedSpace(seed)`, by number."""
    spec = StudySpec.model_validate(
        {
            "name": "delay",
            "cache": "none",
            "trials": trials,
            "seed": seed,
            "sampler": {"kind": variant.sampler},
            "pruning": [],
            "feedback_delay": variant.delay,
        }
    )
    search = _SimulatedSearch(spec, SimulatedSpace(seed))
    if variant.delay is None:
        run_study(spec, search.trial, workers=variant.workers)
    else:
        for number in range(trials):
            search.suggest(number, range(known_below(spec, number) or 0))
    return search.parameters


def found_after(parameters: Sequence[dict[str, ParameterValue]], *, seed: int) -> list[Found]:
    """What a search in `SimulatedSpace(seed)` had found after 1, 2, ... trials."""
    space = SimulatedSpace(seed)
    found: list[Found] = []
    for given in parameters:
        best = space.accuracy(given, noise=True)
        if found and best <= found[-1].best:
            found.append(found[-1])
        else:
            found.append(Found(best=best, noiseless=space.accuracy(given, noise=False)))
    return found


class _SimulatedSearch:
    def __init__(self, spec: StudySpec, space: SimulatedSpace) -> None:
        self.parameters: list[dict[str, ParameterValue]] = []
        self._search = Search(spec)
        self._space = space

    def trial(self, number: int, known: Collection[int]) -> TrialToRun:
        """Suggest a trial, and give it to workers as one fold."""
        seconds = self._space.seconds(self.suggest(number, known))
        return TrialToRun(folds=[(1, 1)], seconds=[seconds])

    def suggest(self, number: int, known: Collection[int]) -> dict[str, ParameterValue]:
        """Suggest a trial from the results of those with the numbers `known`, and the parameters of all."""
        news = sorted({*self._search.under_way.intersection(known), *range(self._search.n_observed, number)})
        self._search.observe([self._record(other, over=other in known) for other in news])
        self.parameters.append(self._search.suggest(number))
        return self.parameters[number]

    def _record(self, number: int, *, over: bool) -> TrialRecord:
        parameters = self.parameters[number]
        return TrialRecord(
            number=number,
            state=TrialState.COMPLETE if over else TrialState.RUNNING,
            parameters=parameters,
            value=self._space.accuracy(parameters, noise=True) if over else None,
        )
