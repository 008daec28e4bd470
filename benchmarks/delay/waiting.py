"""What workers do with their time, by feedback delay, number of workers, protocol and rule.

Searches are those of `benchmarks/searches.py`, in which the skill rises. The seconds of a trial's folds are
drawn for each trial, log-uniform from 20 to 400; those of one fold differ from them by at most 5 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from benchmarks.delay.workers import FASTEST_SECONDS, SECONDS_RATIO, Course, TrialToRun, run_study
from benchmarks.searches import Search, simulate
from coordinator.pruning.replay import accuracy_of
from services.contracts import StudySpec

RuleName = Literal["median", "bound"]
Helping = Literal["on", "off", "not at the end"]
"""Whether idle workers help open trials: while no trial can start, never, or only until all were suggested."""

WORKERS = (1, 2, 4, 8, 16, 32, 64)
DELAYS = (0, 1, 2, 4, 8, 16, 32, 64)
PROTOCOLS = {"LOSO": None, "10-fold": 10}
"""Number of folds by name of the protocol; None: one for each of 118 subjects."""

RULES: tuple[RuleName, ...] = ("median", "bound")
JITTER = 0.05
"""Largest share by which a fold's seconds differ from those of its trial."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A search, and the number of workers that run it."""

    protocol: str
    rule: RuleName
    workers: int
    trials: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How workers used their time in one study."""

    delay: int | None
    helping: Helping
    waiting: float
    """Share of the workers' time without a fold, until the last trial was suggested."""

    thrown_away: float
    """Share of the time spent on folds that went to folds beyond a verdict."""

    at_end: float
    """Share of the workers' time, over the whole study, without a fold after the last trial was suggested."""

    seconds: float
    """Seconds from the start to the end of the study."""


def default_delay(workers: int) -> int:
    """The feedback delay of a study that names its number of workers."""
    spec = StudySpec.model_validate({"name": "delay", "cache": "none", "workers": workers})
    return cast("int", spec.feedback_delay)


def measure(setting: Setting) -> list[Usage]:
    """Run a search with every delay; with the default one also without help, or without help at the end."""
    search = simulate(
        setting.protocol, folds=PROTOCOLS[setting.protocol], rise=1.0, trials=setting.trials, seed=setting.seed
    )
    seconds = _fold_seconds(search, setting.seed)

    def suggest(number: int, _known: Sequence[int]) -> TrialToRun:
        return TrialToRun(folds=search.trials[number], seconds=seconds[number])

    usages = []
    for delay, helping in _variants(setting.workers):
        spec = StudySpec.model_validate(
            {
                "name": "delay",
                "cache": "none",
                "protocol": search.protocol,
                "trials": setting.trials,
                "pruning": [_rule(setting.rule, search)],
                "feedback_delay": delay,
                "idle_workers_help": helping != "off",
            }
        )
        course = run_study(spec, suggest, workers=setting.workers, help_at_end=helping == "on")
        usages.append(_usage(course, setting.workers, delay, helping))
    return usages


def _fold_seconds(search: Search, seed: int) -> list[list[float]]:
    rng = np.random.default_rng((seed, 1))
    shape = len(search.trials), len(search.trials[0])
    of_trial = FASTEST_SECONDS * SECONDS_RATIO ** rng.random((shape[0], 1))
    seconds: list[list[float]] = (of_trial * rng.uniform(1 - JITTER, 1 + JITTER, shape)).tolist()
    return seconds


def _variants(workers: int) -> Iterator[tuple[int | None, Helping]]:
    default = default_delay(workers)
    for delay in sorted({*DELAYS, default}):
        yield delay, "on"
    yield None, "on"
    yield default, "off"
    yield default, "not at the end"


def _rule(rule: RuleName, search: Search) -> dict[str, Any]:
    if rule == "median":
        return {"rule": "median"}
    # One trial in ten reaches it, as in `benchmarks/pruning.py`.
    values = [accuracy_of(folds) for folds in search.trials]
    return {"rule": "bound", "threshold": round(float(np.quantile(values, 0.9)), 3)}


def _usage(course: Course, workers: int, delay: int | None, helping: Helping) -> Usage:
    return Usage(
        delay=delay,
        helping=helping,
        waiting=course.waiting / (workers * course.suggested_at) if course.suggested_at else 0.0,
        thrown_away=course.thrown_away / course.working,
        at_end=course.waiting_at_end / (workers * course.seconds),
        seconds=course.seconds,
    )
