"""Augmented copies are the paper's, move as one clip, and depend on the study's seed and the clip alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import pytest
from numpy.typing import NDArray

from services.contracts import Augmentation, AugmentationCounts
from services.presets import CKPLUS_AUGMENTATION
from services.seeds import augmentation_seed
from worker.training.augmentation import augment, change_contrast, copies_of, flip, make_copy, rotate

SETTINGS = Augmentation()


def a_clip(*, size: int = 12, colour: bool = False, seed: int = 0) -> NDArray[np.uint8]:
    shape = (4, size, size, 3) if colour else (4, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("counts", CKPLUS_AUGMENTATION.counts.values())
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


def test_border() -> None:
    white = np.full((2, 20, 20), 255, np.uint8)
    assert rotate(white, 30, border="black")[:, 0, 0].max() == 0
    assert (rotate(white, 30, border="replicate") == 255).all()


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


COUNTS = AugmentationCounts(flip=1, rotation=2, contrast=2)


@pytest.mark.parametrize(
    ("colour", "border", "digest"),
    [
        (False, "black", "eb4e77384dd4c353"),
        (False, "replicate", "5e7f3cce0d5691e8"),
        (True, "black", "36c79a8105d84817"),
        (True, "replicate", "bd47fa4cf3c56752"),
    ],
)
def test_the_same_seed_gives_the_same_bits_in_every_version(colour: bool, border: str, digest: str) -> None:
    # Stored results were computed with these copies; other copies would make their replays differ.
    settings = Augmentation.model_validate({"border": border})
    copies = augment(a_clip(colour=colour), COUNTS, settings, 7)
    assert sha256(copies.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("colour", [False, True])
def test_one_copy_is_the_one_among_all(colour: bool) -> None:
    clip = a_clip(colour=colour)
    copies = augment(clip, COUNTS, SETTINGS, 7)
    for number in range(copies_of(COUNTS)):
        assert (make_copy(clip, number, COUNTS, SETTINGS, 7) == copies[number]).all()
    assert len({copy.tobytes() for copy in copies}) == 5


def test_threads_make_the_same_copies() -> None:
    clip = a_clip(size=64)
    counts = AugmentationCounts(rotation=20)
    with ThreadPoolExecutor(4) as threads:
        copies = list(threads.map(lambda n: make_copy(clip, n, counts, SETTINGS, 7), range(20)))
    assert (np.stack(copies) == augment(clip, counts, SETTINGS, 7)).all()
