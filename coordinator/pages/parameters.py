"""Parameter importance, and the accuracy of trials at each value of a parameter."""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache
from markupsafe import Markup

from coordinator.optimizer import importances, trial_record
from coordinator.pages import charts
from coordinator.pages.formats import percent, title_of, value
from coordinator.store.fold_map import MappedTrial
from services.contracts import StudySpec, TrialState
from services.contracts.base import Objective
from services.score_names import OBJECTIVE_NAMES
from services.search_space import ParameterValue, Range

MIN_COMPLETE_TRIALS = 40
"""Minimum number of complete trials for importance; with fewer it is mostly chance."""

MAX_TRIALS = 2000
"""Maximum number of complete and of pruned trials, the latest ones, to limit the computation."""

MAX_LABEL_CHARACTERS = 14
"""Characters of all labels that fit on one line under a small chart."""

MAX_CACHED_STUDIES = 64
"""Maximum number of studies whose importance is kept in memory."""

JITTER = 0.32
"""Maximum distance of a dot from the middle of its column, as a share of the column's width."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The score of trials by one parameter."""

    title: str
    chart: Markup


def parameter_panels(study_id: int, spec: StudySpec, trials: Sequence[MappedTrial]) -> dict[str, Any]:
    """The values of the parameters template: importance, highest first, and slices in the same order."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE][-MAX_TRIALS:]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED][-MAX_TRIALS:]
    importance = _importance(study_id, spec, complete) if len(complete) >= MIN_COMPLETE_TRIALS else {}
    searched = [name for name, domain in spec.space.items() if isinstance(domain, Range) or len(domain) > 1]
    ordered = sorted(searched, key=lambda name: -importance.get(name, 0.0))
    return {
        "importance": [(name, importance[name]) for name in ordered if name in importance],
        "complete": len(complete),
        "needed": MIN_COMPLETE_TRIALS,
        "slices": [_slice(spec, name, complete, pruned) for name in ordered] if complete or pruned else [],
    }


def _importance(study_id: int, spec: StudySpec, complete: Sequence[MappedTrial]) -> dict[str, float]:
    key = (len(complete), complete[-1].number, max(trial.value or 0.0 for trial in complete))
    # One computation at a time: it is the most expensive part of the pages.
    with _importance_lock:
        cached = _importance_cache.get(study_id)
        if cached is None or cached[0] != key:
            records = [trial_record(trial) for trial in complete]
            cached = _importance_cache[study_id] = key, importances(spec.space, records)
        return cached[1]


def _slice(spec: StudySpec, name: str, complete: Sequence[MappedTrial], pruned: Sequence[MappedTrial]) -> Slice:
    domain = spec.space.root[name]
    shown = [(t, score) for t in (*complete, *pruned) if (score := t.score(spec.objective)) is not None]
    seen = [score for _, score in shown]
    y = charts.nice_axis(max(0.0, min(seen) - 0.02), min(1.0, max(seen) + 0.02), steps=3)
    if isinstance(domain, Range):
        return _along_range(name, domain, y, shown, spec.objective)
    return _by_option(name, domain, y, shown, spec.objective)


def _along_range(
    name: str, domain: Range, y: charts.Axis, shown: Sequence[_Scored], objective: Objective
) -> Slice:
    position = _Log(domain) if domain.log else _Linear(domain)
    x = charts.Axis(low=0.0, high=1.0, ticks=())
    parts = [charts.axes(x, y, x_title="", y_percent=True)]
    for kind in (TrialState.PRUNED, TrialState.COMPLETE):
        points = [(position.share(t.parameters[name]), score) for t, score in shown if t.state == kind]
        parts.append(charts.dots(points, x, y, kind=f"dots {kind}"))
    parts += [charts.label_at(2, f"{domain.low:g}"), charts.label_at(97, f"{domain.high:g}")]
    words = _capital(OBJECTIVE_NAMES[objective])
    label = f"{words} of trials by {title_of(name)}, from {domain.low:g} to {domain.high:g}"
    return Slice(title=title_of(name), chart=charts.plot(*parts, label=label, size="small"))


def _by_option(
    name: str,
    options: Sequence[ParameterValue],
    y: charts.Axis,
    shown: Sequence[_Scored],
    objective: Objective,
) -> Slice:
    width = 1 / len(options)
    index_of = {_typed(option): index for index, option in enumerate(options)}
    x = charts.Axis(low=0.0, high=1.0, ticks=())
    parts = [charts.axes(x, y, x_title="", y_percent=True)]
    for kind in (TrialState.PRUNED, TrialState.COMPLETE):
        points = [
            (_jittered(index_of[_typed(t.parameters[name])], t.number) * width, score)
            for t, score in shown
            if t.state == kind
        ]
        parts.append(charts.dots(points, x, y, kind=f"dots {kind}"))
    crowded = sum(len(value(option)) for option in options) > MAX_LABEL_CHARACTERS
    means = []
    for index, option in enumerate(options):
        values = [
            score
            for t, score in shown
            if t.state == TrialState.COMPLETE and _typed(t.parameters[name]) == _typed(option)
        ]
        # Labels that would overlap on one line alternate between two lines.
        line = index % 2 if crowded else 0
        parts.append(charts.label_at(100 * (index + 0.5) * width, value(option), line=line))
        if values:
            mean = statistics.fmean(values)
            ends = [((index + 0.5 + side * JITTER) * width, mean) for side in (-1, 1)]
            parts.append(charts.line(ends, x, y, kind="mean"))
            means.append((value(option), len(values), mean))
    described = ", ".join(f"{text} {percent(mean)} in {count} trials" for text, count, mean in means)
    label = (
        f"Mean {OBJECTIVE_NAMES[objective]} of complete trials by {title_of(name)}: {described or 'none yet'}"
    )
    return Slice(
        title=title_of(name),
        chart=charts.plot(*parts, label=label, size="small"),
    )


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _jittered(column: int, number: int) -> float:
    # The golden ratio spreads consecutive numbers evenly.
    return column + 0.5 + 2 * JITTER * ((number * 0.618034) % 1 - 0.5)


def _typed(option: ParameterValue) -> tuple[type, ParameterValue]:
    # The type is part of the key because True == 1 in Python.
    return type(option), option


_Scored = tuple[MappedTrial, float]
"""A trial with its score."""


class _Linear:
    def __init__(self, domain: Range) -> None:
        self._low, self._span = domain.low, domain.high - domain.low

    def share(self, given: ParameterValue) -> float:
        return (float(given) - self._low) / self._span


class _Log(_Linear):
    def __init__(self, domain: Range) -> None:
        super().__init__(Range(low=math.log(domain.low), high=math.log(domain.high)))

    def share(self, given: ParameterValue) -> float:
        return super().share(math.log(float(given)))


_importance_lock = threading.Lock()
_importance_cache: LRUCache[int, tuple[tuple[int, int, float], dict[str, float]]] = LRUCache(MAX_CACHED_STUDIES)
