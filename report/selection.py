"""What must be said beside a number that was chosen on the clips it is measured on, and where there is none."""

from __future__ import annotations

from typing import assert_never

from services.contracts import StudyView
from services.errors import InvalidInput
from services.folds import AllClips, HeldOut, KFold, LeaveOneSubjectOut, SplitProtocol


def selection_warning(protocol: SplitProtocol, compared: int) -> str:
    """One or two sentences for people.

    Args:
        protocol: that the number was measured by.
        compared: how many configurations the number was the best of.
    """
    match protocol:
        case AllClips():
            return "Trained on all clips: what it gets right are clips that it was trained on."
        case HeldOut():
            return (
                "Nothing was chosen on these clips: configuration and epochs were given, and the last epoch "
                "counts."
            )
        case LeaveOneSubjectOut() | KFold():
            best_of = f"the best of {compared} trials, and " if compared > 1 else ""
            return (
                f"This number was chosen on the clips it is measured on: it is {best_of}in each fold the best "
                "epoch. Expect less on new people; `foldwise confirm` shows how much of it was luck."
            )
        case _:
            assert_never(protocol)


def check_cross_validated(study: StudyView) -> None:
    """Refuse a study that is tested on the clips it trains on, or on those of an outer fold.

    Raises:
        InvalidInput: naming it.
    """
    if isinstance(study.spec.protocol, AllClips):
        raise InvalidInput(
            f"study {study.name} trains on all clips and has no accuracy on others; name the study whose "
            "configuration it trains",
            field="name",
        )
    if isinstance(study.spec.protocol, HeldOut):
        raise InvalidInput(
            f"study {study.name} only measures a configuration, on clips that were held out; name the study "
            "that selected it",
            field="name",
        )
