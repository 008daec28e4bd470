"""A dataset's own split is used exactly as it is, or refused with the name of who is on two sides."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts import StudySpec
from services.errors import InvalidInput
from services.folds import (
    AllClips,
    Clip,
    GivenFolds,
    HeldOut,
    Holdout,
    KFold,
    LeaveOneSubjectOut,
    OuterFold,
    SplitProtocol,
    make_folds,
    outer_subjects,
    train_clips,
)
from services.official_splits import natural_order, read_fold_name, read_part
from services.pruning.rule import warmup
from services.validation import folds_of_study


def clip(clip_id: str, **given: Any) -> Clip:
    """`anna_1` is a clip of subject anna."""
    return Clip(**{"clip_id": clip_id, "subject": clip_id.partition("_")[0], "label": 0, **given})


def without_subjects(clips: list[Clip]) -> list[Clip]:
    """As a cache gives clips of a dataset without subjects."""
    return [Clip(**{**vars(c), "subject": c.clip_id, "has_subject": False}) for c in clips]


GIVEN = [
    clip("anna_1", fold="10"),
    clip("anna_2", fold="10"),
    clip("bert_1", fold="2"),
    clip("carl_1", fold="2"),
    clip("dora_1", fold="b"),
]
SPLIT = [
    clip("anna_1", split="train"),
    clip("bert_1", split="test"),
    clip("carl_1", split="validation"),
    clip("dora_1", split="train"),
    clip("dora_2", split="train"),
]


# --- given folds --------------------------------------------------------------------------------------------


def test_each_given_fold_is_a_fold_and_numbers_are_ordered_as_numbers() -> None:
    folds = make_folds(GIVEN, GivenFolds())
    assert [(fold.index, fold.name, fold.test_clips) for fold in folds] == [
        (0, "fold 2", ("bert_1", "carl_1")),
        (1, "fold 10", ("anna_1", "anna_2")),
        (2, "fold b", ("dora_1",)),
    ]
    assert train_clips(GIVEN, folds[1], GivenFolds()) == ("bert_1", "carl_1", "dora_1")
    names = ["10", "9", "a10", "a9", "b", "a01", "a1", ""]
    assert sorted(names, key=natural_order) == ["", "9", "10", "a01", "a1", "a9", "a10", "b"]


@given(
    fold_of=st.lists(st.integers(1, 5), min_size=3, max_size=15),
    clips_of=st.lists(st.integers(1, 3), min_size=15, max_size=15),
    outer=st.none() | st.integers(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_given_folds_are_exactly_the_given_ones(
    fold_of: list[int], clips_of: list[int], outer: int | None
) -> None:
    clips = [
        clip(f"s{subject:02}_{number}", fold=str(fold))
        for subject, fold in enumerate(fold_of)
        for number in range(clips_of[subject])
    ]
    protocol = GivenFolds(outer=None if outer is None else OuterFold(k=2, fold=outer))
    away = outer_subjects(clips, protocol.outer)
    expected = {
        f"fold {fold}": tuple(c.clip_id for c in clips if c.fold == str(fold) and c.subject not in away)
        for fold in sorted(set(fold_of))
    }
    expected = {name: tested for name, tested in expected.items() if tested}
    if len(expected) < 2:
        with pytest.raises(InvalidInput, match="at least 2 are needed"):
            make_folds(clips, protocol)
        return
    folds = make_folds(random.Random(1).sample(clips, len(clips)), protocol)
    assert {fold.name: fold.test_clips for fold in folds} == expected
    for fold in folds:
        others = [clip_id for name, tested in expected.items() if name != fold.name for clip_id in tested]
        assert train_clips(clips, fold, protocol) == tuple(sorted(others))


def test_validation_clips_are_drawn_from_the_other_given_folds() -> None:
    study = StudySpec(name="s", cache="c", protocol=GivenFolds(), epoch_choice="validation")
    for fold in folds_of_study(GIVEN, study):
        assert fold.validation_clips
        assert not set(fold.validation_clips) & set(fold.test_clips)


# --- one split ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch_choice", ["validation", "last", "best_per_fold"])
def test_a_split_is_one_fold_whose_validation_clips_are_never_trained_on(epoch_choice: str) -> None:
    study = StudySpec.model_validate(
        {"name": "s", "cache": "c", "protocol": {"kind": "holdout"}, "epoch_choice": epoch_choice}
    )
    (fold,) = folds_of_study(SPLIT, study)
    assert (fold.index, fold.name, fold.test_clips, fold.validation_clips) == (
        0,
        "test",
        ("bert_1",),
        ("carl_1",),
    )
    assert train_clips(SPLIT, fold, study.protocol) == ("anna_1", "dora_1", "dora_2")


def test_a_split_without_validation_draws_it_from_what_it_trains_on() -> None:
    clips = [c for c in SPLIT if c.split != "validation"]
    study = StudySpec(name="s", cache="c", protocol=Holdout(), epoch_choice="validation")
    (fold,) = folds_of_study(clips, study)
    assert fold.test_clips == ("bert_1",)
    assert fold.validation_clips == ("anna_1",), "two clips to train on are left"


def test_an_outer_fold_takes_its_subjects_out_of_a_split() -> None:
    protocol = Holdout(outer=OuterFold(k=2, fold=0))  # anna and carl
    (fold,) = make_folds(SPLIT, protocol)
    assert (fold.test_clips, fold.validation_clips) == (("bert_1",), ())
    assert train_clips(SPLIT, fold, protocol) == ("dora_1", "dora_2")
    with pytest.raises(InvalidInput, match="no clip that takes part is in the part test"):
        make_folds(SPLIT, Holdout(outer=OuterFold(k=2, fold=1)))


# --- refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clips", "protocol", "message"),
    [
        (
            [*GIVEN, clip("anna_3", fold="2")],
            GivenFolds(),
            r"subject anna is in fold 10 \(clip anna_1\) and in fold 2 \(clip anna_3\): a network must not",
        ),
        (
            [*SPLIT, clip("bert_0", split="train")],
            Holdout(),
            r"subject bert is in train \(clip bert_0\) and in test \(clip bert_1\)",
        ),
        (
            [*SPLIT, clip("carl_2", split="train")],
            Holdout(),
            r"subject carl is in validation \(clip carl_1\) and in train \(clip carl_2\)",
        ),
        (
            [*SPLIT, clip("carl_2", split="test")],
            Holdout(),
            r"subject carl is in validation \(clip carl_1\) and in test \(clip carl_2\)",
        ),
        (SPLIT, GivenFolds(), "clip anna_1 has no given fold; give each clip one in the column `fold`"),
        (GIVEN, Holdout(), "clip anna_1 is in no part of a given split; write train, validation or test in"),
        (GIVEN[:2], GivenFolds(), r"have 1 given fold \(10\), at least 2 are needed"),
        (SPLIT[:1], Holdout(), "no clip that takes part is in the part test"),
        (SPLIT[1:3], Holdout(), "no clip that takes part is in the part train"),
        ([*GIVEN, GIVEN[0]], GivenFolds(), "two clips of the cache have the same id"),
    ],
)
def test_a_split_that_leaks_or_is_not_there_is_refused(
    clips: list[Clip], protocol: SplitProtocol, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        make_folds(clips, protocol)


@pytest.mark.parametrize(
    "protocol",
    [
        LeaveOneSubjectOut(),
        KFold(k=2),
        GivenFolds(outer=OuterFold(k=2, fold=0)),
        Holdout(outer=OuterFold(k=2, fold=0)),
        HeldOut(outer=OuterFold(k=2, fold=0)),
    ],
)
def test_without_subjects_nothing_is_split_by_subject(protocol: SplitProtocol) -> None:
    with pytest.raises(InvalidInput, match=r"the clips have no subjects, .* or choose given_folds or holdout"):
        make_folds(without_subjects(GIVEN), protocol)


def test_without_subjects_the_dataset_s_own_split_is_used() -> None:
    assert len(make_folds(without_subjects(GIVEN), GivenFolds())) == 3
    (fold,) = make_folds(without_subjects(SPLIT), Holdout())
    assert train_clips(without_subjects(SPLIT), fold, Holdout()) == ("anna_1", "dora_1", "dora_2")
    assert len(make_folds(without_subjects(SPLIT), AllClips())[0].test_clips) == 5


# --- names --------------------------------------------------------------------------------------------------


def test_usual_spellings_of_the_parts_are_read() -> None:
    spellings = {
        "train": ["train", "Training", " TRAIN "],
        "validation": ["val", "Valid", "validation", "dev", "Development"],
        "test": ["test", "Testing"],
    }
    for part, names in spellings.items():
        assert [read_part(name) for name in names] == [part] * len(names)
    for name in ("", "tst", "train2", "1"):
        assert read_part(name) is None


def test_a_number_is_the_same_fold_however_it_is_written() -> None:
    assert [read_fold_name(text) for text in ("3", "03", "3.0", "3,0", " a ", "3.5", "1e1")] == [
        *["3"] * 4,
        "a",
        "3.5",
        "1e1",
    ]


def test_rules_warm_up_as_for_k_fold() -> None:
    assert warmup(None, GivenFolds()) == warmup(None, Holdout()) == warmup(None, KFold(k=5)) == 3
