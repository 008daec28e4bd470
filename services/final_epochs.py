"""For how many epochs a model is trained whose configuration was selected in folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from services.contracts.base import EpochChoice


def final_epochs(choice: EpochChoice, counted: Sequence[int], epochs: int) -> int:
    """Epochs to train on all clips, so that the model is like those that were measured in the folds.

    A fold of few clips is perfect by luck after a few epochs, so the best epochs of single folds say nothing.

    Args:
        choice: how the study chose the epoch at which a fold counts.
        counted: the epoch at which each fold counts, from 1.
        epochs: for how many the folds were trained.
    """
    match choice:
        case "best_per_fold" | "last":
            return epochs
        case "best_common":
            # Folds that diverged count at an earlier one.
            return max(counted)
        case "validation":
            # Rounded half up.
            return (2 * sum(counted) + len(counted)) // (2 * len(counted))
        case _:
            assert_never(choice)
