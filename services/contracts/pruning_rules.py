"""Pruning rules as a study names them, and the decision that a rule records."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    FiniteFloat,
)

from services.contracts.base import Contract


class BoundRule(Contract):
    """Prune a trial that cannot reach `threshold` even if every clip to come is right. Exact, never wrong."""

    rule: Literal["bound"] = "bound"
    threshold: FiniteFloat = Field(ge=0, le=1, description="of the metric; the paper prunes below 0.965")
    metric: Literal["accuracy", "uar", "uf1"] = Field(
        "accuracy", description="pooled accuracy, or mean recall or mean F1 of the classes, over all folds"
    )


class MedianRule(Contract):
    """Prune a trial whose best running accuracy so far is below the median of complete trials at this fold."""

    rule: Literal["median"] = "median"
    startup_trials: int = Field(5, ge=1, description="complete trials before anything is pruned")
    warmup_folds: int | None = Field(
        None, ge=0, description="folds of a trial that are always run; by default 10 for LOSO, 3 for k-fold"
    )


class PairedRule(Contract):
    """Prune a trial whose folds are worse than the same folds of the median complete trial, beyond chance.

    That is when the mean difference of their accuracies plus so many of its standard errors is below 0.
    """

    rule: Literal["paired"] = "paired"
    standard_errors: FiniteFloat = Field(
        2.5, ge=0, le=100, description="how far below: more let a trial that is nearly as good run on"
    )
    startup_trials: int = Field(5, ge=1, description="complete trials before anything is pruned")
    warmup_folds: int | None = Field(
        None, ge=0, description="folds of a trial that are always run; by default 10 for LOSO, 3 for k-fold"
    )


PruningRule = Annotated[BoundRule | MedianRule | PairedRule, Field(discriminator="rule")]


class PruneDecision(Contract):
    """Why a trial was pruned: which rule, after which fold, on what numbers."""

    rule: str
    fold: int = Field(description="index of the last fold that counted")
    numbers: dict[str, FiniteFloat]
