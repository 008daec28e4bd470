"""Splits: nobody is on both sides, every clip is tested once, and equal splits have equal hashes."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.errors import InvalidInput
from services.folds import (
    Clip,
    Fold,
    HeldOut,
    KFold,
    LeaveOneSubjectOut,
    OuterFold,
    check_folds,
    make_folds,
    split_hash,
    train_clips,
)


def clip(clip_id: str, subject: str | None = None) -> Clip:
    """`S005_001` is a clip of subject S005."""
    return Clip(clip_id=clip_id, subject=subject or clip_id.split("_", maxsplit=1)[0], label=0)


CLIPS = [
    clip("S011_002"),
    clip("S005_001"),
    clip("S999_001"),
    clip("S011_001"),
    clip("S010_003"),
    clip("S022_001"),
    clip("S010_001"),
]

clip_sets = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=2, max_size=60, unique=True
).map(lambda pairs: [clip(f"S{subject:03d}_{number:03d}") for subject, number in pairs])


def enough_subjects(clips: list[Clip], k: int) -> bool:
    return len({c.subject for c in clips}) >= k


# --- the rules ----------------------------------------------------------------------------------------------


def test_leave_one_subject_out_tests_each_subject_in_the_order_of_ids() -> None:
    folds = make_folds(CLIPS, LeaveOneSubjectOut())
    assert [(fold.index, fold.name, fold.subjects, fold.test_clips) for fold in folds] == [
        (0, "S005", ("S005",), ("S005_001",)),
        (1, "S010", ("S010",), ("S010_001", "S010_003")),
        (2, "S011", ("S011",), ("S011_001", "S011_002")),
        (3, "S022", ("S022",), ("S022_001",)),
        (4, "S999", ("S999",), ("S999_001",)),
    ]


def test_k_fold_deals_subjects_out_by_ascending_id() -> None:
    folds = make_folds(CLIPS, KFold(k=3))
    assert [(fold.name, fold.subjects, fold.test_clips) for fold in folds] == [
        ("fold 1 of 3", ("S005", "S022"), ("S005_001", "S022_001")),
        ("fold 2 of 3", ("S010", "S999"), ("S010_001", "S010_003", "S999_001")),
        ("fold 3 of 3", ("S011",), ("S011_001", "S011_002")),
    ]


def test_ten_folds_of_the_118_subjects_of_ckplus_hold_twelve_or_eleven_each() -> None:
    folds = make_folds([clip(f"S{3 * i + 5:03d}_001") for i in range(118)], KFold(k=10))
    assert [len(fold.subjects) for fold in folds] == [12] * 8 + [11] * 2
    assert folds[0].subjects[:3] == ("S005", "S035", "S065")


def test_a_fold_trains_on_everyone_else() -> None:
    protocol = KFold(k=3)
    fold = make_folds(CLIPS, protocol)[1]
    assert train_clips(CLIPS, fold, protocol) == ("S005_001", "S011_001", "S011_002", "S022_001")


@given(clips=clip_sets, k=st.integers(2, 12), leave_one_out=st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_clip_is_tested_once_and_no_subject_is_on_both_sides(
    clips: list[Clip], k: int, leave_one_out: bool
) -> None:
    subjects = len({c.subject for c in clips})
    k = min(k, subjects)
    if k < 2:
        return
    protocol = LeaveOneSubjectOut() if leave_one_out else KFold(k=k)
    folds = make_folds(clips, protocol)
    assert len(folds) == (subjects if leave_one_out else k)
    assert [fold.index for fold in folds] == list(range(len(folds)))
    tested = Counter(clip_id for fold in folds for clip_id in fold.test_clips)
    assert tested == Counter(c.clip_id for c in clips)
    subject_of = {c.clip_id: c.subject for c in clips}
    for fold in folds:
        trained = train_clips(clips, fold, protocol)
        assert fold.test_clips
        assert sorted((*trained, *fold.test_clips)) == sorted(subject_of)
        assert not {subject_of[c] for c in trained} & {subject_of[c] for c in fold.test_clips}


@given(clips=clip_sets, seed=st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_the_order_of_clips_does_not_matter(clips: list[Clip], seed: int) -> None:
    if not enough_subjects(clips, 2):
        return
    shuffled = random.Random(seed).sample(clips, len(clips))
    for protocol in (LeaveOneSubjectOut(), KFold(k=2)):
        folds = make_folds(clips, protocol)
        assert make_folds(shuffled, protocol) == folds
        assert split_hash(make_folds(shuffled, protocol)) == split_hash(folds)
        assert train_clips(shuffled, folds[0], protocol) == train_clips(clips, folds[0], protocol)


# --- nested -------------------------------------------------------------------------------------------------


@given(
    outer_k=st.integers(2, 6),
    inner_k=st.integers(2, 6),
    clips_of_subject=st.lists(st.integers(1, 3), min_size=18, max_size=30),
    leave_one_out=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_what_an_outer_fold_measures_has_no_part_in_choosing(
    outer_k: int, inner_k: int, clips_of_subject: list[int], leave_one_out: bool
) -> None:
    clips = [
        clip(f"S{subject:03d}_{number}")
        for subject, count in enumerate(clips_of_subject)
        for number in range(count)
    ]
    everything = sorted(c.clip_id for c in clips)
    measured: list[str] = []
    for place, outer_fold in enumerate(make_folds(clips, KFold(k=outer_k))):
        outer = OuterFold(k=outer_k, fold=place)
        protocol = LeaveOneSubjectOut(outer=outer) if leave_one_out else KFold(k=inner_k, outer=outer)
        chosen_on: list[str] = []
        for inner in make_folds(clips, protocol):
            trained = train_clips(clips, inner, protocol)
            assert sorted((*trained, *inner.test_clips, *outer_fold.test_clips)) == everything
            chosen_on.extend(inner.test_clips)
        (held_out,) = make_folds(clips, HeldOut(outer=outer))
        assert (held_out.subjects, held_out.test_clips) == (outer_fold.subjects, outer_fold.test_clips)
        assert list(train_clips(clips, held_out, HeldOut(outer=outer))) == sorted(chosen_on)
        measured.extend(held_out.test_clips)
    assert sorted(measured) == everything


def test_an_outer_fold_must_be_one_of_them_and_leave_enough_subjects() -> None:
    with pytest.raises(ValidationError, match="with k = 3 the last fold is 2"):
        OuterFold(k=3, fold=3)
    with pytest.raises(InvalidInput, match=r"6 outer folds need .* the cache has 5") as refused:
        make_folds(CLIPS, HeldOut(outer=OuterFold(k=6, fold=0)))
    assert refused.value.field == "protocol.outer.k"
    with pytest.raises(InvalidInput, match=r"3 folds need .* the cache has 2 outside the outer fold"):
        make_folds(CLIPS, KFold(k=3, outer=OuterFold(k=2, fold=0)))


# --- the hash -----------------------------------------------------------------------------------------------


def test_the_split_hash_changes_when_a_clip_moves_goes_or_is_renamed() -> None:
    hashes = {
        split_hash(make_folds(clips, KFold(k=3)))
        for clips in (
            CLIPS,
            CLIPS[1:],
            [clip("S005_001", "S006"), *(c for c in CLIPS if c.clip_id != "S005_001"), clip("S005_002")],
            [clip("S011_009"), *CLIPS[1:]],
        )
    }
    assert len(hashes) == 4


def test_the_split_hash_tells_protocols_apart() -> None:
    assert len({split_hash(make_folds(CLIPS, p)) for p in (LeaveOneSubjectOut(), KFold(k=3), KFold(k=2))}) == 3


def test_the_split_hash_does_not_know_labels() -> None:
    relabelled = [replace(c, label=1) for c in CLIPS]
    assert split_hash(make_folds(relabelled, KFold(k=2))) == split_hash(make_folds(CLIPS, KFold(k=2)))


# --- what is wrong with a split -----------------------------------------------------------------------------

PAIR = [clip("S1_1"), clip("S1_2"), clip("S2_1")]


def fold(index: int, *test_clips: str, subjects: tuple[str, ...] | None = None) -> Fold:
    who = subjects or tuple(sorted({c.split("_")[0] for c in test_clips}))
    return Fold(index=index, name=f"f{index}", subjects=who, test_clips=test_clips)


def test_a_sound_split_passes() -> None:
    check_folds(PAIR, [fold(0, "S1_1", "S1_2"), fold(1, "S2_1")])


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([fold(0, "S1_1"), fold(1, "S1_2", "S2_1")], "subject S1 leaks"),
        ([fold(0, "S1_1", "S1_2"), fold(1, "S2_1", "S1_2")], "clip S1_2 is tested twice"),
        ([fold(0, "S1_1", "S1_1", "S1_2"), fold(1, "S2_1")], "clip S1_1 is tested twice"),
        ([fold(0, "S1_1", "S1_2"), fold(1, "S2_1", "S3_1")], "clip S3_1 .* is not in the cache"),
        ([fold(0, "S1_1", "S1_2")], "clip S2_1 is tested in no fold"),
        ([fold(0, "S1_1"), fold(1, "S2_1")], "clip S1_2 is tested in no fold"),
        ([fold(0, "S1_1", "S1_2", subjects=("S2",)), fold(1, "S2_1")], "fold f0 names other subjects"),
        ([fold(0, "S1_1", "S1_2", subjects=("S1", "S2")), fold(1, "S2_1")], "fold f0 names other subjects"),
    ],
)
def test_a_split_that_leaks_repeats_or_forgets_is_refused(folds: list[Fold], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        check_folds(PAIR, folds)


def test_two_clips_of_one_id_are_refused() -> None:
    projected_trials = [*PAIR, clip("S1_1", "S2")]
    with pytest.raises(InvalidInput, match="two clips of the cache have the same id"):
        make_folds(projected_trials, LeaveOneSubjectOut())


@pytest.mark.parametrize(
    ("clips", "protocol", "message"),
    [
        ([], LeaveOneSubjectOut(), "2 folds need .* the cache has 0"),
        (PAIR[:2], LeaveOneSubjectOut(), "2 folds need .* the cache has 1"),
        (PAIR, KFold(k=3), "3 folds need .* the cache has 2"),
    ],
)
def test_too_few_subjects_are_told(
    clips: list[Clip], protocol: LeaveOneSubjectOut | KFold, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as refused:
        make_folds(clips, protocol)
    assert refused.value.field == "protocol"
