"""What must be said beside a number that was chosen on the clips it is measured on."""

from __future__ import annotations


def selection_warning(compared: int) -> str:
    """One or two sentences for people.

    Args:
        compared: how many configurations the number was the best of.
    """
    best_of = f"the best of {compared} trials, and " if compared > 1 else ""
    return (
        f"This number was chosen on the clips it is measured on: it is {best_of}in each fold the best epoch. "
        "Expect less on new people; `foldwise confirm` shows how much of it was luck."
    )
