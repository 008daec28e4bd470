"""Augmented copies of a clip (paper section 3.2): flip, rotation, linear contrast, equal in all its frames."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from numpy.typing import NDArray

from services.contracts import Augmentation, AugmentationCounts

Frames = NDArray[np.uint8]


def augment(clip: Frames, counts: AugmentationCounts, settings: Augmentation, seed: int) -> Frames:
    """Copies of one clip: first the flipped ones, then the rotated ones, then those with another contrast.

    Angles (degrees) and contrast multipliers are drawn uniformly, one for all frames of a copy, and depend on
    the seed only.

    Args:
        clip: uint8, frames x size x size (x 3).
        counts: number of copies of each kind.
        settings: the ranges to draw from, and the border of rotated frames.
        seed: from `services.seeds.augmentation_seed`: a clip has the same copies in all folds and trials.

    Returns:
        uint8, copies x frames x size x size (x 3).
    """
    random = np.random.default_rng(seed)
    angles = random.uniform(-settings.rotation_degrees, settings.rotation_degrees, counts.rotation)
    multipliers = random.uniform(settings.contrast_low, settings.contrast_high, counts.contrast)
    copies = [
        *([flip(clip)] * counts.flip),
        *(rotate(clip, angle, border=settings.border) for angle in angles),
        *(change_contrast(clip, multiplier) for multiplier in multipliers),
    ]
    return np.stack(copies) if copies else np.empty((0, *clip.shape), np.uint8)


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
    # Frames and colours become channels of one image, so that one grid rotates them all.
    image = torch.tensor(clip.reshape(frames, height, width, -1)).permute(0, 3, 1, 2).float()
    image = image.reshape(1, -1, height, width)
    angle = np.deg2rad(degrees)
    # The matrix maps a pixel of the result to the position that it is read from; y points down.
    matrix = [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]]
    grid = F.affine_grid(torch.tensor([matrix], dtype=torch.float32), list(image.shape), align_corners=False)
    padding = "zeros" if border == "black" else "border"
    rotated = F.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    rotated = rotated.reshape(frames, -1, height, width).permute(0, 2, 3, 1).round().clamp(0, 255)
    result: Frames = rotated.to(torch.uint8).numpy().reshape(clip.shape)
    return result


def change_contrast(clip: Frames, multiplier: float) -> Frames:
    """127 + multiplier * (v - 127) for every value v of a uint8 array, clipped to [0, 255] and rounded."""
    table = 127 + multiplier * (np.arange(256) - 127.0)
    result: Frames = np.rint(table.clip(0, 255)).astype(np.uint8)[clip]
    return result
