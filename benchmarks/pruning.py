"""What each pruning rule saves and loses, by replaying searches in which every fold is known.

    python -m benchmarks.pruning [--repeats 50] [--trials 60]
    python -m benchmarks.pruning --record STUDY [--state DIR]

The searches are recorded from real studies, with their trials shuffled in many orders, or simulated
(`benchmarks/searches.py`) in the shape of CK+, with Leave-One-Subject-Out and with ten folds. A replay runs a
search's trials one after another and applies the coordinator's own pruning functions, with folds by index and
with the hardest first. Every study has the default feedback delay of 8: trial n is compared with the complete
trials below n - 8, whatever the number of workers. A replay does not model how a sampler reacts to pruned
trials.

The threshold of `bound` is the accuracy that one trial in ten reaches, as if a user knew what to ask for.

`--record` writes the folds of a finished study without pruning to `benchmarks/recorded_searches`.

The last line is JSON; for each search, rule and order of folds it has
    folds    share of folds that run
    lost     share of searches in which the trial that is best without pruning was pruned
    regret   accuracy of that trial minus the accuracy of the best trial that remains, mean over searches
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.searches import RECORDED, Search, read_search, record_search, shuffled, simulate
from cli.reach import reach
from coordinator.pruning.replay import accuracy_of, replay
from services.contracts import StudySpec
from services.contracts.study import DEFAULT_FEEDBACK_DELAY

Order = Literal["fixed", "hardest_first"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The effect of pruning on one search."""

    folds: float
    lost: bool
    regret: float


def main() -> None:
    """Replay the searches and print the results, or record a study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50, help="number of searches of each kind")
    parser.add_argument("--trials", type=int, default=60, help="number of trials of a simulated search")
    parser.add_argument("--record", metavar="STUDY", help="record this study instead")
    parser.add_argument("--state", type=Path, help="state folder of the service that has the study")
    arguments = parser.parse_args()
    if arguments.record is not None:
        with reach(None, arguments.state) as client:
            record_search(client, arguments.record, RECORDED / f"{arguments.record}.csv")
        return
    outcomes: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    searches = list(_searches(arguments.repeats, arguments.trials))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for search, measured in zip(searches, pool.map(measure, searches), strict=True):
            for name, outcome in measured.items():
                outcomes[search.name][name].append(outcome)
    console = Console()
    for search_name, rules in outcomes.items():
        console.print(_table(search_name, rules))
    print(json.dumps({name: _summary(rules) for name, rules in outcomes.items()}))


def _searches(repeats: int, trials: int) -> Iterator[Search]:
    for path in sorted(RECORDED.glob("*.csv")):
        search = read_search(path)
        yield from (shuffled(search, seed) for seed in range(repeats))
    for folds, rise in ((None, 0.0), (None, 1.0), (10, 0.0), (10, 1.0)):
        name = f"simulated: {folds or 118} folds, {'rising' if rise else 'random'}"
        for seed in range(repeats):
            yield simulate(name, folds=folds, rise=rise, trials=trials, seed=seed)


def measure(search: Search) -> dict[str, Outcome]:
    """Replay one search with every rule."""
    values = [accuracy_of(folds) for folds in search.trials]
    best = max(values)
    outcomes = {}
    for name, order, rules in _variants(search, values):
        spec = StudySpec.model_validate(
            {
                "name": "replay",
                "cache": "none",
                "protocol": search.protocol,
                "pruning": rules,
                "fold_order": order,
                "feedback_delay": DEFAULT_FEEDBACK_DELAY,
            }
        )
        replayed = replay(spec, search.trials)
        outcomes[name] = Outcome(
            folds=sum(replayed.folds) / sum(len(folds) for folds in search.trials),
            lost=values.index(best) in replayed.pruned,
            regret=best - values[replayed.named],
        )
    return outcomes


def _variants(search: Search, values: Sequence[float]) -> Iterator[tuple[str, Order, list[dict[str, Any]]]]:
    many_folds = len(search.trials[0]) > 20
    bound = {"rule": "bound", "threshold": round(float(np.quantile(values, 0.9)), 3)}
    median, paired, wilcoxon, forgiving = (
        {"rule": name} for name in ("median", "paired", "wilcoxon", "forgiving")
    )
    sets: dict[str, list[dict[str, Any]]] = {
        "none": [],
        "bound": [bound],
        "median": [median],
        "paired": [paired],
        "wilcoxon": [wilcoxon],
        "forgiving": [forgiving],
        "median + paired": [median, paired],
        "bound + median": [bound, median],
        "bound + wilcoxon": [bound, wilcoxon],
    }
    for name, rules in sets.items():
        yield f"{name}, fixed", "fixed", rules
        yield f"{name}, hardest first", "hardest_first", rules
    others = [("start-up 2", {"startup_trials": 2}), ("start-up 10", {"startup_trials": 10})]
    others += [(f"warm-up {folds}", {"warmup_folds": folds}) for folds in ((5, 20) if many_folds else (2, 5))]
    for name, setting in others:
        yield f"median, {name}, fixed", "fixed", [{**median, **setting}]
    for factor in (2.0, 3.0):
        yield f"paired, {factor} SE, fixed", "fixed", [{**paired, "standard_errors": factor}]
    for p_value in (0.01, 0.05):
        yield f"wilcoxon, p {p_value}, fixed", "fixed", [{**wilcoxon, "p_threshold": p_value}]


def _summary(rules: dict[str, list[Outcome]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "folds": round(fmean(outcome.folds for outcome in outcomes), 4),
            "lost": round(fmean(outcome.lost for outcome in outcomes), 4),
            "regret": round(fmean(outcome.regret for outcome in outcomes), 5),
        }
        for name, outcomes in rules.items()
    }


def _table(name: str, rules: dict[str, list[Outcome]]) -> Table:
    searches = len(next(iter(rules.values())))
    table = Table(f"{name} ({searches} searches)", "folds run", "best trial lost", "accuracy lost")
    for rule, row in _summary(rules).items():
        regret = f"{100 * row['regret']:.2f} points"
        table.add_row(rule, f"{row['folds']:.1%}", f"{row['lost']:.1%}", regret)
    return table


if __name__ == "__main__":
    main()
