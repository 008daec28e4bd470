"""Draws the validation clips of a study's folds: some training subjects of each fold choose its epoch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from services.contracts.study import StudySpec
from services.errors import InvalidInput
from services.folds import MIN_TRAIN_CLIPS, Clip, Fold, make_folds, train_clips
from services.seeds import derive_seed

DRAWS = 20
"""Draws of a fold's validation subjects, of which the one counts whose classes are closest to the rest."""


def needs_validation(spec: StudySpec) -> bool:
    """Whether each fold of a study chooses its epoch on validation clips."""
    return spec.counted_epoch == "validation"


def folds_of_study(clips: Sequence[Clip], spec: StudySpec) -> tuple[Fold, ...]:
    """The folds of a study, with validation clips if it chooses epochs on them.

    Validation clips that the protocol gives are used. Otherwise `validation_share` of a fold's training
    subjects are drawn, rounded, but at least one, and at least one is left to train on. The draw follows from
    the study's seed, the fold's index and the clips.

    Raises:
        InvalidInput: fewer subjects than the protocol or the draw needs.
    """
    folds = make_folds(clips, spec.protocol)
    if not needs_validation(spec):
        return folds
    return tuple(fold if fold.validation_clips else _with_validation(clips, fold, spec) for fold in folds)


def _with_validation(clips: Sequence[Clip], fold: Fold, spec: StudySpec) -> Fold:
    trained_on = frozenset(train_clips(clips, fold, spec.protocol))
    labels: dict[str, Counter[int]] = {}
    for clip in clips:
        if clip.clip_id in trained_on:
            labels.setdefault(clip.subject, Counter())[clip.label] += 1
    subjects = sorted(labels)
    if len(subjects) < 2:
        raise InvalidInput(
            f"fold {fold.name!r} has {len(subjects)} training subject; `epoch_choice: validation` needs 2, one "
            "to train on and one to choose the epoch; add subjects or set epoch_choice to last",
            field="epoch_choice",
        )
    size = min(max(1, round(spec.validation_share * len(subjects))), len(subjects) - 1)
    draws = (_draw(subjects, size, derive_seed("validation", spec.seed, fold.index, n)) for n in range(DRAWS))
    of_all = sum(labels.values(), Counter[int]())
    chosen = min(draws, key=lambda drawn: _imbalance(drawn, labels, of_all))
    drawn = tuple(sorted(c.clip_id for c in clips if c.clip_id in trained_on and c.subject in chosen))
    if len(trained_on) - len(drawn) < MIN_TRAIN_CLIPS:
        raise InvalidInput(
            f"fold {fold.name!r} has {len(trained_on)} training clips, of which `epoch_choice: validation` "
            f"leaves {len(trained_on) - len(drawn)} to train on; at least {MIN_TRAIN_CLIPS} are needed: lower "
            "validation_share, add clips or set epoch_choice to last",
            field="validation_share",
        )
    return replace(fold, validation_clips=drawn)


def _draw(subjects: Sequence[str], size: int, seed: int) -> frozenset[str]:
    # Python promises the same numbers in every version of `random()` only, not of `sample`.
    numbers = random.Random(seed)
    order = sorted((numbers.random(), subject) for subject in subjects)
    return frozenset(subject for _, subject in order[:size])


def _imbalance(
    drawn: frozenset[str], labels: Mapping[str, Counter[int]], of_all: Counter[int]
) -> tuple[bool, int]:
    """How far the drawn subjects are from their share of the clips of each class; worst if too few are left."""
    of_drawn = Counter[int]()
    for subject in drawn:
        of_drawn.update(labels[subject])
    # In whole numbers, so that every machine finds the same draw.
    off = sum(abs(of_drawn[label] * len(labels) - count * len(drawn)) for label, count in of_all.items())
    return of_all.total() - of_drawn.total() < MIN_TRAIN_CLIPS, off
