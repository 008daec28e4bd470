"""Means and spreads of what was measured, and their tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from benchmarks.delay.search_cost import SEQUENTIAL, VARIANTS, Found, Variant
from benchmarks.delay.waiting import PROTOCOLS, RULES, WORKERS, Setting, Usage, default_delay

Row = dict[str, Any]
"""A line of a table, as in the JSON line of `benchmarks.delay`."""

REFERENCES = (SEQUENTIAL, *(variant for variant in VARIANTS if variant.delay is None))
"""Searches with which the others are compared."""

COMPARED_AFTER = (100, 200, 800)
"""Numbers of trials after which searches are compared."""


def waiting_rows(measured: Mapping[Setting, Sequence[Usage]]) -> list[Row]:
    """Means over searches of the workers' time, for each protocol, rule, number of workers, delay and help."""
    of_case: dict[tuple[str, str, int, int | None, str], list[tuple[Usage, float]]] = defaultdict(list)
    for setting, usages in measured.items():
        without_delay = next(usage.seconds for usage in usages if usage.delay is None)
        for usage in usages:
            case = (setting.protocol, setting.rule, setting.workers, usage.delay, usage.helping)
            of_case[case].append((usage, usage.seconds / without_delay))
    rows = []
    for (protocol, rule, workers, delay, helping), usages_and_times in of_case.items():
        shares = {
            "waiting": [usage.waiting for usage, _ in usages_and_times],
            "thrown_away": [usage.thrown_away for usage, _ in usages_and_times],
            "at_end": [usage.at_end for usage, _ in usages_and_times],
            "time": [time for _, time in usages_and_times],
        }
        row: Row = {
            "protocol": protocol,
            "rule": rule,
            "workers": workers,
            "delay": delay,
            "help": helping,
        }
        for name, values in shares.items():
            row[name] = round(fmean(values), 5)
            row[f"{name}_range"] = [round(min(values), 5), round(max(values), 5)]
        rows.append(row)
    return rows


def with_default_delay(rows: Sequence[Row], helping: str) -> list[Row]:
    """The rows of studies with the default delay and this kind of help."""
    return [row for row in rows if row["help"] == helping and row["delay"] == default_delay(row["workers"])]


def default_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """What workers do with the default delay, with each kind of help."""
    for helping in ("on", "off", "not at the end"):
        table = Table(
            f"d = 2W, help: {helping}",
            "workers",
            "waits",
            "thrown away",
            "idle at the end",
            "time against null",
        )
        for row in with_default_delay(rows, helping):
            table.add_row(
                f"{row['protocol']}, {row['rule']}",
                str(row["workers"]),
                f"{row['waiting']:.2%} ({_percent(row['waiting_range'])})",
                f"{row['thrown_away']:.2%} ({_percent(row['thrown_away_range'])})",
                f"{row['at_end']:.1%}",
                f"{row['time']:.3f} ({row['time_range'][0]:.3f} to {row['time_range'][1]:.3f})",
            )
        yield table


def delay_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Waiting, thrown away and time against null for each delay and number of workers."""
    for protocol in PROTOCOLS:
        for rule in RULES:
            table = Table(
                f"{protocol}, {rule}: waits / thrown away / time", *(f"W = {workers}" for workers in WORKERS)
            )
            cells: dict[int | None, dict[int, str]] = defaultdict(dict)
            for row in rows:
                if (row["protocol"], row["rule"], row["help"]) == (protocol, rule, "on"):
                    cell = f"{100 * row['waiting']:.1f} / {100 * row['thrown_away']:.1f} / {row['time']:.2f}"
                    cells[row["delay"]][row["workers"]] = cell
            for delay in sorted(cells, key=lambda delay: (delay is None, delay)):
                name = "null" if delay is None else f"d = {delay}"
                table.add_row(name, *(cells[delay].get(workers, "") for workers in WORKERS))
            yield table


def loss_rows(found: Mapping[Variant, Mapping[int, Sequence[Found]]]) -> list[Row]:
    """Paired losses against each reference after each number of trials.

    Args:
        found: for each variant and seed, what was found after 1, 2, ... trials.
    """
    rows = []
    for against in REFERENCES:
        for variant in VARIANTS:
            for trials in COMPARED_AFTER:
                seeds = [seed for seed, steps in found[against].items() if len(steps) >= trials]
                pairs = [(found[against][seed][trials - 1], found[variant][seed][trials - 1]) for seed in seeds]
                if variant == against or not pairs:
                    continue
                points, error = _mean_and_error([100 * (first.best - second.best) for first, second in pairs])
                noiseless = [100 * (first.noiseless - second.noiseless) for first, second in pairs]
                noiseless_points, noiseless_error = _mean_and_error(noiseless)
                rows.append(
                    {
                        "variant": variant.name,
                        "against": against.name,
                        "trials": trials,
                        "spaces": len(pairs),
                        "points": points,
                        "error": error,
                        "noiseless_points": noiseless_points,
                        "noiseless_error": noiseless_error,
                    }
                )
    return rows


def loss_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Losses in percentage points, a table for each reference and value."""
    for against in REFERENCES:
        for value, error, name in (
            ("points", "error", "best value"),
            ("noiseless_points", "noiseless_error", "the same trial without noise"),
        ):
            cells: dict[str, dict[int, str]] = defaultdict(dict)
            spaces: dict[int, int] = {}
            for row in rows:
                if row["against"] == against.name:
                    spaces[row["trials"]] = row["spaces"]
                    cells[row["variant"]][row["trials"]] = _with_error(row[value], row[error])
            columns = [f"after {trials} trials ({spaces[trials]} spaces)" for trials in spaces]
            table = Table(f"points lost against {against.name}: {name}", *columns)
            for variant, of_trials in cells.items():
                table.add_row(variant, *(of_trials[trials] for trials in spaces))
            yield table


def best_values(found: Mapping[Variant, Mapping[int, Sequence[Found]]]) -> dict[str, dict[int, float]]:
    """Mean best value in percent, by variant and number of trials."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for variant, searches in found.items():
        for trials in COMPARED_AFTER:
            best = [100 * steps[trials - 1].best for steps in searches.values() if len(steps) >= trials]
            if best:
                values[variant.name][trials] = round(fmean(best), 3)
    return values


def _percent(values: Sequence[float]) -> str:
    return " to ".join(f"{100 * value:.2f}" for value in values)


def _with_error(points: float, error: float | None) -> str:
    return f"{points:+.2f}" if error is None else f"{points:+.2f} ± {error:.2f}"


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, None for a single value."""
    error = round(stdev(values) / sqrt(len(values)), 4) if len(values) > 1 else None
    return round(fmean(values), 4), error
