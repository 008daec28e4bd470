"""The warning beside an accuracy that was selected on its own test clips."""

from __future__ import annotations

from typing import assert_never

from services.contracts import StudySpec, StudyView
from services.errors import InvalidInput
from services.folds import AllClips, HeldOut


def selection_warning(spec: StudySpec, compared: int) -> str:
    """One or two sentences about what the accuracy of a study's best trial stands for.

    Args:
        spec: the study.
        compared: number of configurations of which this one was the best.
    """
    if isinstance(spec.protocol, AllClips):
        return "Trained on all clips: this accuracy is measured on the training clips."
    if isinstance(spec.protocol, HeldOut):
        return (
            "Nothing was selected on these clips: configuration and epochs were fixed before, and the last "
            "epoch counts."
        )
    selected = [f"it is the best of {compared} trials"] if compared > 1 else []
    match spec.counted_epoch:
        case "best_per_fold":
            selected.append("each fold counts its best epoch")
        case "best_common":
            selected.append("all folds count the epoch that is best for them together")
        case "last" | "validation":
            # No test clip chooses the epoch.
            pass
        case _:
            assert_never(spec.counted_epoch)
    if not selected:
        return (
            "Nothing was selected on these clips: there is one configuration, and no test clip chose its epoch."
        )
    return (
        f"This accuracy was selected on its own test clips: {', and '.join(selected)}. Expect a lower accuracy "
        "on new people; `foldwise confirm` measures how much of it was luck."
    )


def check_cross_validated(study: StudyView) -> None:
    """Check that a study cross-validates.

    Raises:
        InvalidInput: it tests on the clips that it trains on, or on those of an outer fold.
    """
    if isinstance(study.spec.protocol, AllClips):
        raise InvalidInput(
            f"study {study.name} trains on all clips and has no accuracy on other clips; name the study whose "
            "configuration it trains",
            field="name",
        )
    if isinstance(study.spec.protocol, HeldOut):
        raise InvalidInput(
            f"study {study.name} only measures a configuration, on held-out clips; name the study that "
            "selected it",
            field="name",
        )
