"""Checks before a study runs that a network can be trained in each of its folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from services.errors import InvalidInput
from services.folds import MIN_CLASSES, MIN_TRAIN_CLIPS, AllClips, Clip, Fold, SplitProtocol, outer_subjects


def check_trainable(
    clips: Sequence[Clip], folds: Sequence[Fold], protocol: SplitProtocol, classes: Sequence[str]
) -> None:
    """Check before a study runs that a network can be trained in every fold.

    Raises:
        InvalidInput: the clips have fewer than two classes, or a fold has fewer than `MIN_TRAIN_CLIPS` clips to
            train on.
    """
    found = sorted({classes[clip.label] for clip in clips})
    if len(found) < MIN_CLASSES:
        raise InvalidInput(
            f"the clips have {len(found)} class ({', '.join(found)}), a study needs at least {MIN_CLASSES}; "
            "add clips of another class",
            field="cache",
        )
    clips_of = Counter(clip.subject for clip in clips)
    outer = frozenset() if isinstance(protocol, AllClips) else outer_subjects(clips, protocol.outer)
    for fold in folds:
        # As many as `train_clips` lists, without going through all clips for each fold.
        away = frozenset() if isinstance(protocol, AllClips) else outer.union(fold.subjects)
        left = len(clips) - sum(clips_of[subject] for subject in away) - len(fold.validation_clips)
        if left < MIN_TRAIN_CLIPS:
            raise InvalidInput(
                f"fold {fold.name!r} leaves {left} of {len(clips)} clips to train on, at least "
                f"{MIN_TRAIN_CLIPS} are needed; add clips or choose another protocol",
                field="protocol",
            )
