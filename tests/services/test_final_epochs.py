"""For how many epochs a final model trains."""

from __future__ import annotations

import pytest

from services.contracts.base import EpochChoice
from services.final_epochs import final_epochs


@pytest.mark.parametrize(
    ("choice", "counted", "wanted"),
    [
        # Perfect by luck after a few epochs, which says nothing.
        ("best_per_fold", [1, 2, 3], 16),
        ("last", [16, 16, 16], 16),
        # The second fold diverged.
        ("best_common", [7, 2, 7], 7),
        ("validation", [3, 4, 4], 4),
        ("validation", [3, 4], 4),
        ("validation", [3, 4, 3], 3),
        ("validation", [1], 1),
    ],
)
def test_epochs_of_a_final_model(choice: EpochChoice, counted: list[int], wanted: int) -> None:
    assert final_epochs(choice, counted, 16) == wanted
