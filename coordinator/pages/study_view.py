"""Computes what a study's page shows from rows that were read before; reads no database."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from coordinator.pages import charts
from coordinator.pages.forecast import TimeLeft, time_left
from coordinator.pages.formats import percent
from coordinator.store.fold_map import MappedTrial
from services.contracts import StudySpec, StudyState, TrialState
from services.score_names import OBJECTIVE_NAMES

RECENT_TRIALS = 100
"""Ended trials, the latest ones, from which the forecast takes the folds per trial."""

_STATE_ORDER = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAILED,
    TrialState.CANCELLED,
    TrialState.RUNNING,
    TrialState.READY,
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The progress of a study."""

    counts: dict[TrialState, int]
    ended: int
    budget: int
    best: MappedTrial | None
    folds_counted: int
    folds_saved: int
    """Folds that pruned trials did not run."""

    pruned_by: dict[str, int]
    """Pruned trials by rule."""

    left: TimeLeft | None

    @property
    def saved_share(self) -> float:
        """Saved folds as a share (0 to 1) of the folds that would have run without pruning."""
        total = self.folds_counted + self.folds_saved
        return self.folds_saved / total if total else 0.0


def summarize(
    spec: StudySpec,
    state: StudyState,
    folds: int,
    trials: Sequence[MappedTrial],
    counted_at: Sequence[datetime],
) -> Summary:
    """Summarize the progress of a study.

    Args:
        spec: spec of the study.
        state: state of the study.
        folds: number of folds of each trial.
        trials: all trials, by number.
        counted_at: when the study's last folds were counted, oldest first.
    """
    ended = [trial for trial in trials if trial.state.over]
    open_trials = [trial for trial in trials if not trial.state.over]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    left = None
    if state == StudyState.RUNNING:
        started = [trial for trial in open_trials if trial.folds_done]
        left = time_left(
            counted_at,
            [trial.folds_done for trial in ended[-RECENT_TRIALS:]],
            spec.trials - len(ended) - len(started),
            sum(folds - trial.folds_done for trial in started),
        )
    return Summary(
        counts=dict(Counter(trial.state for trial in trials)),
        ended=len(ended),
        budget=spec.trials,
        best=best_of(trials),
        folds_counted=sum(trial.folds_done for trial in trials),
        folds_saved=sum(folds - trial.folds_done - trial.folds_beyond_verdict for trial in pruned),
        pruned_by=dict(Counter(trial.pruned.rule for trial in pruned if trial.pruned)),
        left=left,
    )


def best_of(trials: Sequence[MappedTrial]) -> MappedTrial | None:
    """The complete trial of highest value, earliest on ties; if none, the pruned one of highest bound."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    if complete:
        return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number))
    pruned = [t for t in trials if t.state == TrialState.PRUNED and t.clips]
    return min(pruned, key=lambda trial: (trial.clips - trial.correct, trial.number), default=None)


def progress_bar(summary: Summary) -> Markup:
    """A bar of the trials by state, as shares of the budget."""
    whole = max(summary.budget, sum(summary.counts.values()), 1)
    counts = ", ".join(f"{summary.counts[s]} {s}" for s in _STATE_ORDER if summary.counts.get(s))
    return charts.bar(
        ((summary.counts.get(state, 0) / whole, f"state-{state.value}") for state in _STATE_ORDER),
        label=f"{summary.ended} of {summary.budget} trials have ended; trials by state: {counts or 'none yet'}",
    )


def convergence(spec: StudySpec, trials: Sequence[MappedTrial], chance: float) -> Markup | None:
    """The paper's Fig. 2: a cross for every trial, a line for the best so far; None until a fold is done."""
    objective = spec.objective
    shown = [(trial, score) for trial in trials if (score := trial.score(objective)) is not None]
    if not shown:
        return None
    thresholds = (rule.drawn_threshold(objective) for rule in spec.pruning)
    threshold = next((threshold for threshold in thresholds if threshold is not None), None)
    seen = [score for _, score in shown] + ([threshold] if threshold is not None else [])
    y = charts.nice_axis(max(0.0, min(seen) - 0.02), min(1.0, max(seen) + 0.02))
    created = trials[-1].number + 1
    x = charts.nice_axis(0, max(1, min(spec.trials, max(10, created * 5 // 4)) - 1), steps=6, whole=True)
    best = _best_so_far(trials)
    parts = [charts.axes(x, y, x_title="trial", y_percent=True)]
    if y.low <= chance:
        parts.append(charts.level(chance, y, kind="chance", text="chance"))
    if threshold is not None:
        parts.append(
            charts.level(threshold, y, kind="threshold", text=f"pruning threshold {percent(threshold)}")
        )
    if compares_with_median(spec):
        parts.append(charts.steps(_medians(trials), x, y, kind="median"))
    for kind, symbol, states in (
        ("pruned", "cross", {TrialState.PRUNED}),
        ("ended", "cross", {TrialState.FAILED, TrialState.CANCELLED}),
        ("complete", "cross", {TrialState.COMPLETE}),
        ("running", "ring", {TrialState.RUNNING, TrialState.READY}),
    ):
        of_kind = ((t.number, t.number, score) for t, score in shown if t.state in states)
        parts.append(charts.marks(of_kind, x, y, kind=kind, symbol=symbol))
    parts.append(charts.steps([*best, *((created - 1, b) for _, b in best[-1:])], x, y, kind="best"))
    name = OBJECTIVE_NAMES[objective]
    label = f"{name[0].upper()}{name[1:]} of {len(shown)} trials by number"
    if best:
        label += f"; best complete trial so far: {percent(best[-1][1])}"
    return charts.plot(*parts, label=label, size="tall")


def compares_with_median(spec: StudySpec) -> bool:
    """Whether a rule of the study compares its trials with the median of the complete ones."""
    return any(rule.compares_with_median for rule in spec.pruning)


def _best_so_far(trials: Sequence[MappedTrial]) -> list[charts.Point]:
    best: list[charts.Point] = []
    for trial in trials:
        if trial.value is not None and (not best or trial.value > best[-1][1]):
            best.append((trial.number, trial.value))
    return best


def _medians(trials: Sequence[MappedTrial]) -> list[charts.Point]:
    """The median value of the complete trials up to each complete trial."""
    values: list[float] = []
    medians: list[charts.Point] = []
    for trial in trials:
        if trial.value is not None:
            insort(values, trial.value)
            low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
            medians.append((trial.number, (low + high) / 2))
    return medians
