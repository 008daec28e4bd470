"""The warning beside an accuracy that was selected on its own test clips."""

from __future__ import annotations

from typing import assert_never

from services.contracts import StudyView
from services.errors import InvalidInput
from services.folds import (
    AllClips,
    GivenFolds,
    HeldOut,
    Holdout,
    KFold,
    LeaveOneSubjectOut,
    SplitProtocol,
)


def selection_warning(protocol: SplitProtocol, compared: int) -> str:
    """One or two sentences about what an accuracy stands for.

    Args:
        protocol: by which the accuracy was measured.
        compared: number of configurations of which this one was the best.
    """
    match protocol:
        case AllClips():
            return "Trained on all clips: this accuracy is measured on the training clips."
        case HeldOut():
            return (
                "Nothing was selected on these clips: configuration and epochs were fixed before, and the last "
                "epoch counts."
            )
        case LeaveOneSubjectOut() | KFold() | GivenFolds() | Holdout():
            best_of = f"it is the best of {compared} trials, and " if compared > 1 else ""
            return (
                f"This accuracy was selected on its own test clips: {best_of}each fold counts its best epoch. "
                "Expect a lower accuracy on new people; `foldwise confirm` measures how much of it was luck."
            )
        case _:
            assert_never(protocol)


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
