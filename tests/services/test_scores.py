"""Scores against plain-Python references, and thresholds that are exact."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scores import (
    accuracy,
    best_epoch,
    confusion,
    needed_correct,
    unweighted_average_recall,
    unweighted_f1,
)

CLASSES = 4
pairs = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), max_size=40)


def test_rows_are_true_classes_and_columns_predicted_ones() -> None:
    counts = confusion([0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 2, 2], classes=4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    assert counts.dtype == np.int64


def test_scores_worked_out_by_hand() -> None:
    counts = confusion([0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 2, 2], classes=4)
    assert accuracy(counts) == 4 / 6
    assert unweighted_average_recall(counts) == pytest.approx((1 / 2 + 1 / 1 + 2 / 3) / 3)
    # true positives over: themselves plus half of false positives and false negatives
    f1 = [1 / (1 + (1 + 1) / 2), 1 / (1 + (1 + 0) / 2), 2 / (2 + (0 + 1) / 2)]
    assert unweighted_f1(counts) == pytest.approx(sum(f1) / 3)


def test_the_paper_counts_319_of_327_as_97_55() -> None:
    counts = np.diag([45, 59, 25, 69, 28, 83, 18]).astype(np.int64)
    counts[0, 0] -= 8
    counts[0, 4] += 8
    assert round(100 * accuracy(counts), 2) == 97.55


def test_no_clips_score_nothing() -> None:
    counts = confusion([], [], classes=3)
    assert (accuracy(counts), unweighted_average_recall(counts), unweighted_f1(counts)) == (0.0, 0.0, 0.0)


def test_a_class_that_does_not_occur_takes_no_part_in_the_means() -> None:
    counts = confusion([0, 0, 1], [0, 0, 2], classes=3)
    assert unweighted_average_recall(counts) == 0.5
    assert unweighted_f1(counts) == 0.5


@given(pairs)
@settings(max_examples=150, deadline=None)
def test_scores_agree_with_their_definitions(given_pairs: list[tuple[int, int]]) -> None:
    counts = confusion([t for t, _ in given_pairs], [p for _, p in given_pairs], CLASSES)
    for true in range(CLASSES):
        for predicted in range(CLASSES):
            assert counts[true, predicted] == given_pairs.count((true, predicted))
    if not given_pairs:
        return
    recalls, f1s = [], []
    for c in range(CLASSES):
        hit = sum(t == p == c for t, p in given_pairs)
        is_c = sum(t == c for t, _ in given_pairs)
        called_c = sum(p == c for _, p in given_pairs)
        if is_c:
            recall = hit / is_c
            precision = hit / called_c if called_c else 0.0
            recalls.append(recall)
            f1s.append(2 * precision * recall / (precision + recall) if hit else 0.0)
    assert accuracy(counts) == sum(t == p for t, p in given_pairs) / len(given_pairs)
    assert unweighted_average_recall(counts) == pytest.approx(sum(recalls) / len(recalls))
    assert unweighted_f1(counts) == pytest.approx(sum(f1s) / len(f1s))


# --- the best epoch -----------------------------------------------------------------------------------------


def test_the_best_epoch_is_the_earliest_with_the_most_right() -> None:
    truth = [0, 1, 2]
    assert best_epoch(truth, [[1, 1, 1], [0, 1, 1], [0, 2, 2], [0, 0, 0]]) == (1, 2)
    assert best_epoch(truth, [[1, 2, 0], [2, 0, 1]]) == (0, 0)
    assert best_epoch(truth, [[0, 0, 0], [0, 1, 2]]) == (1, 3)


@given(
    st.integers(1, 6).flatmap(
        lambda clips: st.tuples(
            st.lists(st.integers(0, 2), min_size=clips, max_size=clips),
            st.lists(st.lists(st.integers(0, 2), min_size=clips, max_size=clips), min_size=1, max_size=16),
        )
    )
)
@settings(max_examples=100, deadline=None)
def test_no_epoch_is_better_and_no_earlier_one_as_good(drawn: tuple[list[int], list[list[int]]]) -> None:
    truth, epochs = drawn
    right = [sum(t == p for t, p in zip(truth, predicted, strict=True)) for predicted in epochs]
    best, correct = best_epoch(truth, epochs)
    assert right[best] == correct == max(right)
    assert all(earlier < correct for earlier in right[:best])


# --- how many must be right ---------------------------------------------------------------------------------


def test_the_paper_threshold_needs_316_of_the_327_clips_of_ckplus() -> None:
    assert needed_correct(0.965, 327) == 316


@pytest.mark.parametrize(
    ("threshold", "clips", "needed"), [(0.0, 5, 0), (1.0, 5, 5), (1e-7, 5, 1), (0.5, 0, 0)]
)
def test_the_ends_of_the_scale(threshold: float, clips: int, needed: int) -> None:
    assert needed_correct(threshold, clips) == needed


@pytest.mark.parametrize("clips", [10, 50, 100, 1000])
def test_hundredths_are_never_off_by_one(clips: int) -> None:
    # In binary, 0.07 * 100 and 0.55 * 100 come out just above 7 and 55.
    for hundredths in range(101):
        assert needed_correct(hundredths / 100, clips) == -(-hundredths * clips // 100)


@given(digits=st.integers(1, 6), numerator=st.integers(0, 10**6), clips=st.integers(1, 5000))
@settings(max_examples=200, deadline=None)
def test_a_threshold_counts_as_the_decimal_that_was_written(digits: int, numerator: int, clips: int) -> None:
    written = Fraction(numerator % (10**digits + 1), 10**digits)
    needed = needed_correct(float(written), clips)
    assert needed == math.ceil(written * clips)
    assert Fraction(needed, clips) >= written > Fraction(needed - 1, clips)
