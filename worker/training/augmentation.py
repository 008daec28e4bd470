"""Augmented copies of a clip (paper section 3.2): flip, rotation, linear contrast, equal in all its frames."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from numpy.typing import NDArray

from services.contracts import Augmentation, AugmentationCounts

Frames = NDArray[np.uint8]


def augment(clip: Frames, counts: AugmentationCounts, settings: Augmentation, seed: int) -> Frames:
    """All copies of one clip: first the flipped ones, then the rotated ones, then those with another contrast.

    Args:
        clip: uint8, frames x size x size (x 3).
        counts: number of copies of each kind.
        settings: the ranges to draw from, and the border of rotated frames.
        seed: from `services.seeds.augmentation_seed`: a clip has the same copies in all folds and trials.

    Returns:
        uint8, copies x frames x size x size (x 3).
    """
    copies = np.empty((copies_of(counts), *clip.shape), np.uint8)
    for number in range(len(copies)):
        copies[number] = make_copy(clip, number, counts, settings, seed)
    return copies


def make_copy(
    clip: Frames, number: int, counts: AugmentationCounts, settings: Augmentation, seed: int
) -> Frames:
    """Copy `number` of those that `augment` makes, without making the others.

    Angles (degrees) and contrast multipliers are drawn uniformly, one for all frames of a copy, and depend on
    the seed only. Several threads may make copies at the same time.

    Args:
        clip: uint8, frames x size x size (x 3).
        number: index of the copy, from 0; below `copies_of(counts)`.
        counts: number of copies of each kind.
        settings: the ranges to draw from, and the border of rotated frames.
        seed: from `services.seeds.augmentation_seed`.

    Returns:
        uint8, frames x size x size (x 3).
    """
    # All are drawn, whichever is wanted: each number depends on how many were drawn before it.
    random = np.random.default_rng(seed)
    angles = random.uniform(-settings.rotation_degrees, settings.rotation_degrees, counts.rotation)
    multipliers = random.uniform(settings.contrast_low, settings.contrast_high, counts.contrast)
    if number < counts.flip:
        return flip(clip)
    number -= counts.flip
    if number < counts.rotation:
        return rotate(clip, angles[number], border=settings.border)
    return change_contrast(clip, multipliers[number - counts.rotation])


def copies_of(counts: AugmentationCounts) -> int:
    """Number of copies that `augment` makes."""
    return counts.flip + counts.rotation + counts.contrast


def flip(clip: Frames) -> Frames:
    """The clip mirrored left to right; uint8, frames x size x size (x 3)."""
    return np.ascontiguousarray(np.flip(clip, axis=2))


def rotate(clip: Frames, degrees: float, *, border: str) -> Frames:
    """The clip rotated counter-clockwise about the centre of its frames, interpolated bilinearly and rounded.

    Args:
        clip: uint8, frames x size x size (x 3).
        degrees: the angle, the same for every frame.
        border: fills pixels from outside the frame: `black`, or `replicate` the nearest pixel.
    """
    frames, height, width = clip.shape[:3]
    # Frames and colours become channels of one image, so that one grid rotates them all. NumPy converts the
    # values: torch would start threads for so little, which takes longer than the work.
    image = np.moveaxis(clip.reshape(frames, height, width, -1), -1, 1).astype(np.float32)
    channels = torch.from_numpy(image.reshape(1, -1, height, width))
    angle = np.deg2rad(degrees)
    # The matrix maps a pixel of the result to the position that it is read from; y points down.
    matrix = [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]]
    grid = F.affine_grid(torch.tensor([matrix], dtype=torch.float32), list(channels.shape), align_corners=False)
    padding = "zeros" if border == "black" else "border"
    sampled = F.grid_sample(channels, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    values = np.moveaxis(sampled.numpy().reshape(frames, -1, height, width), 1, -1)
    rotated: Frames = np.rint(values).clip(0, 255).astype(np.uint8).reshape(clip.shape)
    return rotated


def change_contrast(clip: Frames, multiplier: float) -> Frames:
    """127 + multiplier * (v - 127) for every value v of a uint8 array, clipped to [0, 255] and rounded."""
    table = 127 + multiplier * (np.arange(256) - 127.0)
    result: Frames = np.rint(table.clip(0, 255)).astype(np.uint8)[clip]
    return result
