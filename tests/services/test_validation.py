"""Validation clips: whole subjects that a fold neither trains on nor tests, drawn the same everywhere."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts import StudySpec
from services.errors import InvalidInput
from services.folds import (
    Clip,
    OuterFold,
    check_folds,
    make_folds,
    outer_subjects,
    train_clips,
)
from services.trainable import check_trainable
from services.validation import folds_of_study


def clips_of(*clips_of_subject: int) -> list[Clip]:
    """This number of clips of the subjects S000, S001, ..., of two classes in turn."""
    return [
        Clip(clip_id=f"S{subject:03d}_{number}", subject=f"S{subject:03d}", label=number % 2)
        for subject, clips in enumerate(clips_of_subject)
        for number in range(clips)
    ]


def spec(**given: Any) -> StudySpec:
    return StudySpec.model_validate({"name": "s", "cache": "c", "epoch_choice": "validation", **given})


@given(
    counts=st.lists(st.integers(2, 4), min_size=8, max_size=20),
    k=st.integers(2, 3),
    leave_one_out=st.booleans(),
    outer=st.none() | st.integers(0, 1),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=60, deadline=None)
def test_no_subject_is_on_two_sides_and_every_clip_is_on_one(
    counts: list[int], k: int, leave_one_out: bool, outer: int | None, share: float, seed: int
) -> None:
    clips = clips_of(*counts)
    away = None if outer is None else {"k": 2, "fold": outer}
    protocol = {"kind": "loso", "outer": away} if leave_one_out else {"kind": "kfold", "k": k, "outer": away}
    study = spec(protocol=protocol, validation_share=share, seed=seed)
    held_out = outer_subjects(clips, None if outer is None else OuterFold(k=2, fold=outer))
    inner = [clip for clip in clips if clip.subject not in held_out]
    subject_of = {clip.clip_id: clip.subject for clip in clips}
    folds = folds_of_study(clips, study)
    for fold in folds:
        parts = [train_clips(clips, fold, study.protocol), fold.validation_clips, fold.test_clips]
        assert sorted(clip_id for part in parts for clip_id in part) == sorted(c.clip_id for c in inner)
        trained, validated, tested = ({subject_of[clip_id] for clip_id in part} for part in parts)
        assert not trained & validated
        assert not validated & tested
        assert validated
        usual = round(share * len(trained | validated))
        assert len(validated) == min(max(1, usual), len(trained | validated) - 1)
    check_folds(inner, folds)
    check_trainable(clips, folds, study.protocol, ("a", "b"))
    assert folds_of_study(random.Random(seed).sample(clips, len(clips)), study) == folds
    without = study.model_copy(update={"epoch_choice": "last"})
    assert folds_of_study(clips, without) == make_folds(clips, study.protocol)


def test_the_draw_is_the_same_on_every_machine_and_depends_on_seed_and_fold() -> None:
    clips = clips_of(*[2] * 12)
    drawn = [
        [sorted({clip_id[:4] for clip_id in fold.validation_clips}) for fold in folds_of_study(clips, study)]
        for study in (spec(protocol={"kind": "kfold", "k": 2}, seed=seed) for seed in (0, 1))
    ]
    assert drawn == [[["S009"], ["S008"]], [["S007"], ["S004"]]], "as studies have stored them"


def test_a_draw_has_its_share_of_every_class() -> None:
    # Half of the subjects show only the first class, the others only the second.
    clips = [
        Clip(clip_id=f"S{subject:02d}_{number}", subject=f"S{subject:02d}", label=subject % 2)
        for subject in range(42)
        for number in range(3)
    ]
    label_of = {clip.clip_id: clip.label for clip in clips}
    for fold in folds_of_study(clips, spec(validation_share=0.2)):
        counts = Counter(label_of[clip_id] for clip_id in fold.validation_clips)
        assert sorted(counts.values()) == [12, 12]


@pytest.mark.parametrize("protocol", [{"kind": "all"}, {"kind": "held_out", "outer": {"k": 2, "fold": 0}}])
def test_what_counts_the_last_epoch_has_no_validation_clips(protocol: dict[str, Any]) -> None:
    study = spec(protocol=protocol, trials=1, pruning=[])
    assert [fold.validation_clips for fold in folds_of_study(clips_of(2, 2, 2, 2), study)] == [()]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((2, 2), "fold 'S000' has 1 training subject; .* set epoch_choice to last"),
        (
            (5, 1, 1),
            "fold 'S000' has 2 training clips, of which .* leaves 1 to train on; at least 2 are needed",
        ),
    ],
)
def test_too_few_subjects_to_choose_the_epoch_on_are_refused(counts: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        folds_of_study(clips_of(*counts), spec())


def test_a_draw_leaves_two_clips_to_train_on_if_one_can() -> None:
    for seed in range(10):
        # Fold S002 trains on S000 or on S001, which has one clip only.
        fold = folds_of_study(clips_of(2, 1, 2), spec(seed=seed))[2]
        assert fold.validation_clips == ("S001_0",)
