"""The expressions of the synthetic set: what moves in a face, how far, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Pose(NamedTuple):
    """How far each part of the face is moved: 0 at rest, 1 at a strong expression; some go below 0."""

    inner_brow: float = 0.0
    outer_brow: float = 0.0
    frown: float = 0.0
    eye_open: float = 0.0
    cheek: float = 0.0
    nose_wrinkle: float = 0.0
    upper_lip: float = 0.0
    corner_left: float = 0.0
    corner_right: float = 0.0
    stretch: float = 0.0
    jaw: float = 0.0
    press: float = 0.0


PART_OF_FIELD = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2])
"""For each field of a pose the part it moves with: 0 brows, 1 eyes, 2 nose and mouth."""


@dataclass(frozen=True, kw_only=True)
class Expression:
    """How an expression looks at its peak, and when each part of the face reaches it."""

    apex: Pose
    onset: tuple[float, float, float]
    """Start of brows, eyes and mouth, as a share of the window (0 to 1)."""

    duration: tuple[float, float, float]
    """Time that each takes to its peak, as a share of the window."""


EXPRESSIONS: dict[str, Expression] = {
    "anger": Expression(
        apex=Pose(
            inner_brow=-1.0,
            outer_brow=-0.3,
            frown=1.0,
            eye_open=-0.1,
            corner_left=-0.2,
            corner_right=-0.2,
            press=1.0,
        ),
        onset=(0.08, 0.15, 0.48),
        duration=(0.30, 0.30, 0.35),
    ),
    "disgust": Expression(
        apex=Pose(
            inner_brow=-0.6,
            outer_brow=-0.2,
            frown=0.4,
            eye_open=-0.5,
            cheek=0.5,
            nose_wrinkle=1.0,
            upper_lip=1.0,
            corner_left=-0.25,
            corner_right=-0.25,
        ),
        onset=(0.45, 0.35, 0.08),
        duration=(0.35, 0.35, 0.30),
    ),
    "fear": Expression(
        apex=Pose(
            inner_brow=1.0,
            outer_brow=0.4,
            frown=0.7,
            eye_open=0.8,
            corner_left=-0.3,
            corner_right=-0.3,
            stretch=0.9,
            jaw=0.35,
        ),
        onset=(0.08, 0.08, 0.45),
        duration=(0.25, 0.25, 0.45),
    ),
    "happy": Expression(
        apex=Pose(
            eye_open=-0.4, cheek=0.9, upper_lip=0.25, corner_left=1.0, corner_right=1.0, stretch=0.5, jaw=0.15
        ),
        onset=(0.20, 0.35, 0.10),
        duration=(0.50, 0.45, 0.60),
    ),
    "sadness": Expression(
        apex=Pose(
            inner_brow=0.9,
            outer_brow=-0.5,
            frown=0.5,
            eye_open=-0.35,
            corner_left=-1.0,
            corner_right=-1.0,
            stretch=-0.1,
            press=0.35,
        ),
        onset=(0.30, 0.30, 0.12),
        duration=(0.60, 0.60, 0.75),
    ),
    "surprise": Expression(
        apex=Pose(inner_brow=1.0, outer_brow=1.0, eye_open=0.9, stretch=-0.35, jaw=1.0),
        onset=(0.30, 0.28, 0.25),
        duration=(0.20, 0.18, 0.22),
    ),
    "contempt": Expression(
        apex=Pose(eye_open=-0.15, cheek=0.15, corner_left=0.9, corner_right=-0.1, stretch=0.1, press=0.45),
        onset=(0.20, 0.35, 0.45),
        duration=(0.30, 0.25, 0.25),
    ),
}

_SIMILAR_PEAKS = (("fear", "surprise", 0.7), ("anger", "disgust", 0.5), ("happy", "contempt", 0.4))
"""Pairs of classes whose peaks are moved towards each other, and how far at difficulty 1 (1: the same peak)."""

EYES_SHUT = -1.0
"""`eye_open` during a blink; no expression comes near it."""

MIN_POSE = np.array(Pose(-1.3, -1.0, -0.3, -0.75, 0.0, 0.0, -0.3, -1.3, -1.3, -0.5, 0.0, -0.6), np.float32)
MAX_POSE = np.array(Pose(1.4, 1.3, 1.3, 1.2, 1.2, 1.2, 1.2, 1.3, 1.3, 1.2, 1.2, 1.2), np.float32)
"""The range of each field of a pose, float32."""


def peak_pose(label: str, slant: float, difficulty: float) -> npt.NDArray[np.float32]:
    """The pose at the peak of a class, float32, one value for each field of `Pose`.

    `slant` below 0 swaps the corners of the mouth; `difficulty` (0 to 1) moves similar peaks together.
    """
    apex = np.array(EXPRESSIONS[label].apex, np.float32)
    for one, other, share in _SIMILAR_PEAKS:
        if label in (one, other):
            other_apex = np.array(EXPRESSIONS[other if label == one else one].apex, np.float32)
            apex += (other_apex - apex) * np.float32(0.5 * share * difficulty)
    if slant < 0:
        left, right = Pose._fields.index("corner_left"), Pose._fields.index("corner_right")
        apex[[left, right]] = apex[[right, left]]
    return apex
