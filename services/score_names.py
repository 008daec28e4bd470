"""Names of objectives and of choices of the epoch, for people."""

from __future__ import annotations

from services.contracts.base import EpochChoice, Objective

OBJECTIVE_NAMES: dict[Objective, str] = {"accuracy": "accuracy", "uar": "UAR", "uf1": "UF1"}
"""Names in sentences."""

READING_NAMES: dict[EpochChoice, str] = {
    "best_per_fold": "best epoch of each fold",
    "best_common": "best epoch common to all folds",
    "last": "last epoch",
    "validation": "best epoch on validation clips",
}
"""Names for tables."""


def epoch_choice_words(choice: EpochChoice) -> str:
    """A choice of the epoch in a few words, which follow a comma."""
    return {
        "best_per_fold": "each fold at its best epoch",
        "best_common": "all folds at their best common epoch",
        "last": "after the last epoch",
        "validation": "each fold at the best epoch on validation clips",
    }[choice]
