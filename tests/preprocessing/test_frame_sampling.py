"""Which frames of a video its windows are made of."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.frame_sampling import FrameSampling, sample_windows

LAST, UNIFORM, MIDDLE = FrameSampling


@pytest.mark.parametrize(
    ("sampling", "available", "frames", "expected"),
    [
        (LAST, 25, 3, [[22, 23, 24]]),
        (UNIFORM, 25, 3, [[0, 12, 24]]),
        (UNIFORM, 25, 4, [[0, 8, 16, 24]]),
        (UNIFORM, 6, 4, [[0, 2, 3, 5]]),
        (UNIFORM, 25, 1, [[12]]),
        (MIDDLE, 25, 3, [[11, 12, 13]]),
        (MIDDLE, 25, 4, [[10, 11, 12, 13]]),
        # Positions 0, 5, 10, 15, 20, 25, dealt out in turn.
        (UNIFORM, 26, 3, [[0, 10, 20], [5, 15, 25]]),
        (UNIFORM, 26, 2, [[0, 15], [5, 20], [10, 25]]),
        # Segments of 10 frames, whose middle is between frames 4 and 5.
        (MIDDLE, 30, 4, [[3, 4, 5, 6], [13, 14, 15, 16], [23, 24, 25, 26]]),
        # Segments of four frames are shorter than a window, so the first and the last are moved.
        (MIDDLE, 12, 10, [[*range(10)], [*range(1, 11)], [*range(2, 12)]]),
        (LAST, 2, 4, [[0, 1, 1, 1]]),
        (UNIFORM, 2, 4, [[0, 1, 1, 1], [0, 1, 1, 1]]),
        (MIDDLE, 4, 4, [[0, 1, 2, 3], [0, 1, 2, 3]]),
    ],
)
def test_the_frames_of_each_window(
    sampling: FrameSampling, available: int, frames: int, expected: list[list[int]]
) -> None:
    windows = sample_windows(available, frames=frames, windows=len(expected), sampling=sampling)
    assert [list(window) for window in windows] == expected


@given(
    available=st.integers(1, 400),
    frames=st.integers(1, 20),
    windows=st.integers(1, 12),
    sampling=st.sampled_from(FrameSampling),
)
def test_every_window_is_ordered_in_range_and_full(
    available: int, frames: int, windows: int, sampling: FrameSampling
) -> None:
    windows = 1 if sampling is LAST else windows
    sampled = sample_windows(available, frames=frames, windows=windows, sampling=sampling)
    assert len(sampled) == windows
    for window in sampled:
        assert len(window) == frames
        assert 0 <= window[0] <= window[-1] < available
        if available < frames:
            assert window == (*range(available), *[available - 1] * (frames - available))
        else:
            assert all(one < other for one, other in pairwise(window))
            if sampling is not UNIFORM:
                assert window[-1] - window[0] == frames - 1
    assert list(sampled) == sorted(sampled)
    if sampling is UNIFORM and frames * windows > 1:
        assert (sampled[0][0], sampled[-1][-1]) == (0, available - 1)
        steps = [b - a for window in sampled for a, b in pairwise(window)]
        if available > frames and steps:
            assert max(steps) - min(steps) <= 1
    if sampling is MIDDLE and available >= frames:
        # The windows of the video played backwards are the same, but for rounding.
        backwards = [available - 1 - window[-1] for window in reversed(sampled)]
        assert all(abs(a - b[0]) <= 1 for a, b in zip(backwards, sampled, strict=True))
