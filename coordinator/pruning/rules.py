"""Applies the pruning rules that a study names; each rule is a module of `services.pruning`."""

from __future__ import annotations

from services.contracts import PruneDecision, StudySpec
from services.pruning.rule import FoldTable, TrialProgress


def decide(spec: StudySpec, progress: TrialProgress, table: FoldTable) -> PruneDecision | None:
    """Ask the study's rules in their order; the first that fires is the decision.

    Args:
        spec: the study.
        progress: the trial after the fold that was just accepted.
        table: the folds of its study.
    """
    decisions = (rule.decide(progress, table, spec.protocol) for rule in spec.pruning)
    return next((decision for decision in decisions if decision is not None), None)
