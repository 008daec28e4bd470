"""How a trial ended, in a few words, for tables."""

from __future__ import annotations

from services.contracts import TrialView


def trial_outcome(trial: TrialView) -> str:
    """Why a trial ended, such as `pruned by median after 3/5 folds`; its worker while it runs; else nothing."""
    if trial.pruned is not None:
        numbers = trial.pruned.describe_numbers()
        return f"pruned by {trial.pruned.rule} after {trial.folds_done}/{trial.folds} folds ({numbers})"
    if trial.end_reason:
        return trial.end_reason
    return f"on {trial.worker}" if trial.worker else ""
