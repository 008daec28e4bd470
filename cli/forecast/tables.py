"""A plan in lines and tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from cli.forecast.plan import COSTLY, Plan
from services.contracts import StudySpec
from services.search_space import title_of

_CAPTION = "in brackets without taps that meet padding"


def plan_lines(plan: Plan, spec: StudySpec) -> Iterator[str]:
    """The study in some lines."""
    yield (
        f"study {plan.study}: {plan.trials} trials of {plan.folds} folds on {plan.dataset} "
        f"({plan.dataset_known_from}: {plan.clips} clips of {plan.subjects} subjects, "
        f"{plan.augmented_clips} with augmented copies)"
    )
    yield (
        f"a trial passes {plan.clip_passes_per_trial:,} clips forward and backward at most, "
        f"the study {plan.clip_passes:,}: {plan.pflop:,.4g} PFLOP"
    )
    if spec.economies.stop_when_perfect:
        yield "fewer where a fold ends at the first epoch with every test clip right (stop_when_perfect)"
    rules = ", ".join(rule.rule for rule in spec.pruning)
    if plan.folds_share_pruned is None:
        yield f"what the rules ({rules}) save is not forecast: it hangs on the confusion of classes"
    elif rules:
        yield (
            f"the rules ({rules}) let {plan.folds_share_pruned:.0%} of the folds run, by simulated trials that "
            "have 92 % right on CK+"
        )


def configurations_table(plan: Plan) -> Table:
    """A row for each configuration that costs something else."""
    searched = [name for name in COSTLY if len({getattr(cost, name) for cost in plan.configurations}) > 1]
    table = Table(*map(title_of, searched), "GFLOP per clip", "PFLOP per trial", "GiB", caption=_CAPTION)
    for cost in plan.configurations:
        table.add_row(
            *(str(getattr(cost, name)) for name in searched),
            f"{cost.gflop_per_clip:,.4g} ({cost.gflop_per_clip_without_padding:,.4g})",
            f"{cost.pflop_per_trial:,.4g} ({cost.pflop_per_trial_without_padding:,.4g})",
            f"{cost.memory_gib:.1f}",
        )
    return table


def devices_table(plan: Plan) -> Table:
    """A row for each device."""
    table = Table("on one", "of its peak", "hours per trial", "hours", "with pruning")
    for device in plan.devices:
        name = device.device if device.fits else f"{device.device} (too small)"
        used = "-" if device.utilisation is None else f"{device.utilisation:.0%}"
        table.add_row(
            name,
            f"{used} {'measured' if device.measured else 'assumed'}",
            *(_hours(hours) for hours in (device.hours_per_trial, device.hours, device.hours_pruned)),
        )
    return table


def _hours(hours: float | None) -> str:
    if hours is None:
        return "-"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
