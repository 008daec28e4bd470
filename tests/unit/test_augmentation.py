"""Augmented copies are the paper's, move as one clip, and depend on the study's seed and the clip alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.contracts import Augmentation, AugmentationCounts
from services.seeds import augmentation_seed
from worker.training.augmentation import augment, change_contrast, copies_of, flip, rotate

CKPLUS = {  # section 4.1: clips of the class, then its copies
    "anger": (45, AugmentationCounts(flip=1, rotation=2, contrast=1)),
    "contempt": (18, AugmentationCounts(flip=1, rotation=7, contrast=4)),
    "disgust": (59, AugmentationCounts(flip=1, rotation=1, contrast=1)),
    "fear": (25, AugmentationCounts(flip=1, rotation=4, contrast=4)),
    "happy": (69, AugmentationCounts(flip=1, rotation=1, contrast=1)),
    "sadness": (28, AugmentationCounts(flip=1, rotation=4, contrast=3)),
    "surprise": (83, AugmentationCounts(flip=1, rotation=1, contrast=0)),
}
SETTINGS = Augmentation()


def a_clip(*, size: int = 12, colour: bool = False, seed: int = 0) -> NDArray[np.uint8]:
    shape = (4, size, size, 3) if colour else (4, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_totals_of_the_papers_training_sets() -> None:
    assert sum(clips * (1 + copies_of(counts)) for clips, counts in CKPLUS.values()) == 1722
    assert 480 * (1 + copies_of(AugmentationCounts(flip=1, rotation=5, contrast=2))) == 4320


@pytest.mark.parametrize("counts", [counts for _, counts in CKPLUS.values()])
@pytest.mark.parametrize("colour", [False, True])
def test_as_many_copies_as_asked(counts: AugmentationCounts, colour: bool) -> None:
    clip = a_clip(colour=colour)
    copies = augment(clip, counts, SETTINGS, 1)
    assert copies.shape == (copies_of(counts), *clip.shape)
    assert copies.dtype == np.uint8


def test_no_copies() -> None:
    assert augment(a_clip(), AugmentationCounts(), SETTINGS, 1).shape == (0, 4, 12, 12)


def test_flip_mirrors_left_and_right() -> None:
    clip = a_clip(colour=True)
    assert (flip(clip)[:, :, 0] == clip[:, :, -1]).all()
    assert (flip(flip(clip)) == clip).all()


@given(value=st.integers(0, 255), multiplier=st.floats(0, 5))
def test_contrast_is_the_papers_formula(value: int, multiplier: float) -> None:
    exact = 127 + multiplier * (value - 127)
    changed = change_contrast(np.array([value], np.uint8), multiplier)
    assert abs(float(changed[0]) - min(max(exact, 0), 255)) <= 0.5


def test_contrast_clips_at_both_ends() -> None:
    values = np.array([0, 60, 127, 200, 255], np.uint8)
    assert change_contrast(values, 2.2).tolist() == [0, 0, 127, 255, 255]
    assert change_contrast(values, 0.0).tolist() == [127] * 5
    assert change_contrast(values, 1.0).tolist() == values.tolist()


@pytest.mark.parametrize("colour", [False, True])
def test_quarter_turns_move_pixels_exactly(colour: bool) -> None:
    clip = a_clip(colour=colour)
    assert (rotate(clip, 0, border="black") == clip).all()
    # A sample point that rounding puts a hair outside would mix in black, so the rim is left out.
    inner = (slice(None), slice(1, -1), slice(1, -1))
    assert (rotate(clip, 90, border="black")[inner] == np.rot90(clip, axes=(1, 2))[inner]).all()
    assert (rotate(clip, 180, border="replicate") == clip[:, ::-1, ::-1]).all()


def test_rotation_turns_every_frame_by_the_same_angle() -> None:
    clip = np.repeat(a_clip(size=32)[:1], 4, axis=0)
    for copy in augment(clip, AugmentationCounts(rotation=3), SETTINGS, 5):
        assert (copy == copy[0]).all()
        assert (copy != clip).any()


def test_copies_turn_by_different_angles_within_the_range() -> None:
    settings = Augmentation(rotation_degrees=30, border="replicate")
    point = np.zeros((1, 101, 101), np.uint8)
    point[0, 48:53, 88:93] = 255  # 40 pixels right of the centre
    angles = []
    for copy in augment(point, AugmentationCounts(rotation=100), settings, 3):
        rows, columns = np.nonzero(copy[0])
        angles.append(np.degrees(np.arctan2(50 - rows.mean(), columns.mean() - 50)))
    assert -31 < min(angles) < -20
    assert 20 < max(angles) < 31


def test_border() -> None:
    white = np.full((2, 20, 20), 255, np.uint8)
    assert rotate(white, 30, border="black")[:, 0, 0].max() == 0
    assert (rotate(white, 30, border="replicate") == 255).all()


def test_contrast_multipliers_are_one_per_copy_within_the_range() -> None:
    clip = np.full((3, 4, 4), 137, np.uint8)
    copies = augment(clip, AugmentationCounts(contrast=100), SETTINGS, 3)
    assert all(len(np.unique(copy)) == 1 for copy in copies)
    values = copies[:, 0, 0, 0]
    assert 127 + 2 <= values.min() < 131
    assert 147 < values.max() <= 127 + 22


def test_copies_depend_on_study_seed_and_clip_alone() -> None:
    counts = AugmentationCounts(flip=1, rotation=2, contrast=2)

    def copies(study_seed: int, clip_id: str) -> NDArray[np.uint8]:
        seed = augmentation_seed(study_seed=study_seed, clip_id=clip_id)
        return augment(a_clip(), counts, SETTINGS, seed)

    first = copies(0, "S005/001")
    np.random.default_rng(1).random(100)
    copies(0, "S010/002")
    assert (copies(0, "S005/001") == first).all()
    assert (copies(0, "S010/002") != first).any()
    assert (copies(1, "S005/001") != first).any()


def test_a_read_only_clip_is_augmented_and_left_alone() -> None:
    clip = a_clip()
    before = clip.copy()
    clip.flags.writeable = False
    augment(clip, AugmentationCounts(flip=1, rotation=1, contrast=1), SETTINGS, 1)
    assert (clip == before).all()
