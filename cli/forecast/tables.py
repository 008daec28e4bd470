"""A forecast as lines and tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from cli.forecast.costs import COST_PARAMETERS
from cli.forecast.forecast import Forecast
from services.clip_cache import subjects_words
from services.contracts import StudySpec
from services.search_space import title_of

_CAPTION = "in brackets: without kernel taps on padding"


def forecast_lines(forecast: Forecast, spec: StudySpec) -> Iterator[str]:
    """The study, its clip passes and operations, and what its rules save."""
    yield (
        f"study {forecast.study}: {forecast.trials} trials of {forecast.folds} folds on {forecast.dataset} "
        f"({forecast.dataset_known_from}: {forecast.clips} clips of {subjects_words(forecast.subjects)}, "
        f"{forecast.augmented_clips} with augmented copies)"
    )
    yield (
        f"maximum number of clips passed forward and backward: {forecast.clip_passes_per_trial:,} per trial, "
        f"{forecast.clip_passes:,} in the study ({forecast.pflop:,.4g} PFLOP)"
    )
    if spec.economies.stop_when_perfect and spec.counted_epoch == "best_per_fold":
        yield "stop_when_perfect saves some of them: a fold ends at its first epoch without a wrong test clip"
    rules = ", ".join(rule.rule for rule in spec.pruning)
    if forecast.folds_share_pruned is None:
        yield f"pruning by {rules}: no forecast, because the savings depend on which classes a model confuses"
    elif rules:
        yield (
            f"pruning by {rules}: about {100 * forecast.folds_share_pruned:.0f} % of the folds run, estimated "
            "on simulated trials (with a mean accuracy of 92 % on CK+)"
        )


def configurations_table(forecast: Forecast) -> Table:
    """A row for each enqueued configuration, and for each other one with its own cost."""
    configurations = forecast.costs().configurations
    varied = [
        name
        for name in COST_PARAMETERS
        if forecast.enqueued or len({getattr(cost, name) for cost in configurations}) > 1
    ]
    table = Table(
        *(["trial"] if forecast.enqueued else []),
        *map(title_of, varied),
        "GFLOP per clip",
        "PFLOP per trial",
        "GiB of memory",
        caption=_CAPTION,
    )
    for number, cost in enumerate(configurations):
        trial = str(number) if number < len(forecast.enqueued) else "drawn"
        table.add_row(
            *([trial] if forecast.enqueued else []),
            *(str(getattr(cost, name)) for name in varied),
            f"{cost.gflop_per_clip:,.4g} ({cost.gflop_per_clip_without_padding:,.4g})",
            f"{cost.pflop_per_trial:,.4g} ({cost.pflop_per_trial_without_padding:,.4g})",
            f"{cost.memory_gib:.1f}",
        )
    return table


def devices_table(forecast: Forecast) -> Table:
    """A row for each device and precision."""
    table = Table(
        "device", "precision", "share of its peak", "hours per trial", "hours, all folds", "hours with pruning"
    )
    for device in forecast.devices:
        name = device.device
        if not device.kernels:
            name += " (torch here has no kernels for it)"
        elif not device.fits:
            name += " (too small)"
        used = "-" if device.utilisation is None else f"{device.utilisation:.0%}"
        table.add_row(
            name,
            device.precision,
            used if device.utilisation is None else f"{used} {'measured' if device.measured else 'assumed'}",
            *(_hours(hours) for hours in (device.hours_per_trial, device.hours, device.hours_pruned)),
        )
    return table


def _hours(hours: float | None) -> str:
    if hours is None:
        return "-"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
