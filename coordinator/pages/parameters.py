"""Which parameters matter, and what accuracy trials had at each of their values."""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from coordinator.optimizer import importances, trial_record
from coordinator.pages import charts
from coordinator.pages.words import percent, title_of, value
from coordinator.store.fold_map import MappedTrial
from services.contracts import StudySpec, TrialState
from services.search_space import ParameterValue, Range

TRIALS_NEEDED = 40
"""Complete trials; from fewer, importance says more of chance than of parameters."""

TRIALS_LOOKED_AT = 2000
"""Complete trials at most, the last ones; the work grows with them."""

LETTERS_ON_A_LINE = 14
"""Under a small chart."""

JITTER = 0.32
"""Of a column's width: how far from its middle dots are drawn, so that they lie beside each other."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The trials along one parameter."""

    title: str
    chart: Markup


def parameter_panels(study_id: int, spec: StudySpec, trials: Sequence[MappedTrial]) -> dict[str, Any]:
    """What the panel of parameters is made of: importance by name, and slices in that order."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE][-TRIALS_LOOKED_AT:]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED][-TRIALS_LOOKED_AT:]
    importance = _importance(study_id, spec, complete) if len(complete) >= TRIALS_NEEDED else {}
    searched = [name for name, domain in spec.space.items() if isinstance(domain, Range) or len(domain) > 1]
    ordered = sorted(searched, key=lambda name: -importance.get(name, 0.0))
    return {
        "importance": [(name, importance[name]) for name in ordered if name in importance],
        "complete": len(complete),
        "needed": TRIALS_NEEDED,
        "slices": [_slice(spec, name, complete, pruned) for name in ordered] if complete or pruned else [],
    }


def _importance(study_id: int, spec: StudySpec, complete: Sequence[MappedTrial]) -> dict[str, float]:
    key = (len(complete), complete[-1].number, max(trial.value or 0.0 for trial in complete))
    # One at a time: it is the dearest question there is.
    with _lock:
        known = _known.get(study_id)
        if known is None or known[0] != key:
            records = [trial_record(trial) for trial in complete]
            known = _known[study_id] = key, importances(spec.space, records)
        return known[1]


def _slice(spec: StudySpec, name: str, complete: Sequence[MappedTrial], pruned: Sequence[MappedTrial]) -> Slice:
    domain = spec.space.root[name]
    seen = [t.accuracy for t in (*complete, *pruned) if t.accuracy is not None]
    y = charts.nice_axis(max(0.0, min(seen) - 0.02), min(1.0, max(seen) + 0.02), steps=3)
    if isinstance(domain, Range):
        return _along_range(name, domain, y, complete, pruned)
    return _by_option(name, domain, y, complete, pruned)


def _along_range(
    name: str, domain: Range, y: charts.Axis, complete: Sequence[MappedTrial], pruned: Sequence[MappedTrial]
) -> Slice:
    position = _Log(domain) if domain.log else _Linear(domain)
    x = charts.Axis(low=0.0, high=1.0, ticks=())
    parts = [charts.axes(x, y, x_title="", y_percent=True)]
    for kind, group in (("pruned", pruned), ("complete", complete)):
        points = [(position.share(t.parameters[name]), t.accuracy) for t in group if t.accuracy is not None]
        parts.append(charts.dots(points, x, y, kind=f"dots {kind}"))
    parts += [charts.label_at(2, f"{domain.low:g}"), charts.label_at(97, f"{domain.high:g}")]
    label = f"Accuracy of trials by {title_of(name)}, from {domain.low:g} to {domain.high:g}"
    return Slice(title=title_of(name), chart=charts.plot(*parts, label=label, size="small"))


def _by_option(
    name: str,
    options: Sequence[ParameterValue],
    y: charts.Axis,
    complete: Sequence[MappedTrial],
    pruned: Sequence[MappedTrial],
) -> Slice:
    width = 1 / len(options)
    place = {(type(option), option): index for index, option in enumerate(options)}
    x = charts.Axis(low=0.0, high=1.0, ticks=())
    parts = [charts.axes(x, y, x_title="", y_percent=True)]
    for kind, group in (("pruned", pruned), ("complete", complete)):
        points = [
            (_beside(place[_of(t.parameters[name])], t.number) * width, t.accuracy)
            for t in group
            if t.accuracy is not None
        ]
        parts.append(charts.dots(points, x, y, kind=f"dots {kind}"))
    crowded = sum(len(value(option)) for option in options) > LETTERS_ON_A_LINE
    values = []
    for index, option in enumerate(options):
        had = [t.value for t in complete if t.value is not None and _of(t.parameters[name]) == _of(option)]
        # Many words would run into each other on one line.
        line = index % 2 if crowded else 0
        parts.append(charts.label_at(100 * (index + 0.5) * width, value(option), line=line))
        if had:
            mean = statistics.fmean(had)
            ends = [((index + 0.5 + side * JITTER) * width, mean) for side in (-1, 1)]
            parts.append(charts.line(ends, x, y, kind="mean"))
            values.append((value(option), len(had), mean))
    words = ", ".join(f"{text} {percent(mean)} in {count} trials" for text, count, mean in values)
    label = f"Accuracy of complete trials by {title_of(name)}, in the mean: {words or 'none yet'}"
    return Slice(
        title=title_of(name),
        chart=charts.plot(*parts, label=label, size="small"),
    )


def _beside(column: int, number: int) -> float:
    # The golden ratio spreads consecutive numbers evenly.
    return column + 0.5 + 2 * JITTER * ((number * 0.618034) % 1 - 0.5)


def _of(option: ParameterValue) -> tuple[type, ParameterValue]:
    # To Python, True equals 1.
    return type(option), option


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


_lock = threading.Lock()
_known: dict[int, tuple[tuple[int, int, float], dict[str, float]]] = {}
