"""What must be said beside a number that was chosen on the clips it is measured on, and where there is none."""

from __future__ import annotations

from services.contracts import StudyView
from services.errors import InvalidInput
from services.folds import AllClips


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


def check_cross_validated(study: StudyView) -> None:
    """Refuse a study that is tested on the clips it trains on.

    Raises:
        InvalidInput: naming it.
    """
    if isinstance(study.spec.protocol, AllClips):
        raise InvalidInput(
            f"study {study.name} trains on all clips and has no accuracy on others; name the study whose "
            "configuration it trains",
            field="name",
        )
