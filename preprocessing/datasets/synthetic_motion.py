"""The people of the synthetic set, and their pose, head position and light in each frame.

In all functions `length` is a number of frames; `difficulty` is that of the set and `fade` the share of the
expression that is gone by the last frame, both in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from preprocessing.datasets.ckplus import CLASSES
from preprocessing.datasets.synthetic_expressions import (
    EXPRESSIONS,
    EYES_SHUT,
    MAX_POSE,
    MIN_POSE,
    PART_OF_FIELD,
    Pose,
    peak_pose,
)

WIDTH, HEIGHT = 640, 490
"""Size of a written frame in pixels."""

SCALE = 2
"""Factor by which drawn frames are smaller than written ones: a camera's detail at a quarter of the cost."""

_WINDOW_FRAMES = 10
"""Number of last frames in which the expression builds up; clips are cut from them."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """What is constant over all sequences of a subject; lengths in half face widths, tones 0 to 255."""

    half_width: float
    """Half the width of the face in drawn pixels."""

    centre: tuple[float, float]
    """Middle of the face (x, y) in drawn pixels."""

    skin: float
    hair_tone: float
    brow: float
    iris: float
    lip: float
    clothes: float
    chin: float
    jaw: float
    eye_gap: float
    eye_width: float
    eye_height: float
    brow_height: float
    brow_thickness: float
    brow_arch: float
    nose_width: float
    nose_tip: float
    mouth: float
    mouth_width: float
    lip_height: float
    hair: str
    hairline: float
    beard: float
    moustache: float
    rest: npt.NDArray[np.float32]
    """The resting pose: one value for each field of `Pose`."""

    gain: float
    """Factor of this person's expressions."""

    slant: float
    """-1 or 1: the side of a one-sided smile."""


_FADE_SHARE = 0.4
"""Share of the window that a full fade takes; a smaller fade takes less and leaves more for the rise."""


class Light(NamedTuple):
    """The light on one frame."""

    towards: tuple[float, float, float]
    """Where the light comes from: right, down, front; of length 1."""

    directed: float
    """Share of the light that has a direction (0 to 1)."""

    gain: float
    """Factor of the tones, applied after `gamma`."""

    gamma: float
    """Exponent of the tones, scaled to 0 to 1."""


def make_person(rng: np.random.Generator, difficulty: float) -> Person:
    """A random subject."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    skin = between(95, 205)
    hair = between(20, 75) if rng.random() < 0.75 else between(120, 190)
    if abs(hair - skin) < 35:
        hair = skin - 45
    leaning = np.array(EXPRESSIONS[str(rng.choice(CLASSES))].apex, np.float32)
    rest = difficulty * (between(0.4, 1.0) * leaning + rng.normal(0, 0.35, leaning.size))
    bearded = rng.random() < 0.2
    return Person(
        half_width=between(46, 58),
        centre=(WIDTH / SCALE / 2 + between(-22, 22), HEIGHT / SCALE / 2 + between(-10, 10)),
        skin=skin,
        hair_tone=hair,
        brow=min(hair, skin - 50) * between(0.8, 1.0),
        iris=between(20, 95),
        lip=skin * between(0.5, 0.74),
        clothes=between(30, 220),
        chin=between(1.2, 1.4),
        jaw=between(0.85, 1.12),
        eye_gap=between(0.39, 0.46),
        eye_width=between(0.17, 0.215),
        eye_height=between(0.065, 0.095),
        brow_height=between(0.22, 0.29),
        brow_thickness=between(0.035, 0.08),
        brow_arch=between(0.0, 0.06),
        nose_width=between(0.15, 0.22),
        nose_tip=between(0.27, 0.36),
        mouth=between(0.66, 0.74),
        mouth_width=between(0.31, 0.40),
        lip_height=between(0.055, 0.10),
        hair=str(rng.choice(["cropped", "long", "parted", "full", "bald"], p=[0.25, 0.25, 0.25, 0.15, 0.1])),
        hairline=between(-0.98, -0.8),
        beard=between(0.2, 0.6) if bearded else 0.0,
        moustache=between(0.4, 0.9) if bearded or rng.random() < 0.08 else 0.0,
        rest=rest.astype(np.float32),
        gain=between(0.85, 1.15),
        slant=1.0 if rng.random() < 0.5 else -1.0,
    )


def move_face(
    rng: np.random.Generator, person: Person, label: str | None, length: int, difficulty: float, fade: float
) -> npt.NDArray[np.float32]:
    """The pose in each frame, float32, length x fields of `Pose`: at rest, then at its peak, then fading.

    Without a fade the last frame is the peak. Without a label the face stays near its rest.
    """
    start = max(0, length - _WINDOW_FRAMES)
    time = (np.arange(length) - start) / (length - 1 - start)
    rest = person.rest + rng.normal(0, 0.06 * difficulty, person.rest.size)
    moves = np.zeros((length, person.rest.size))
    if label is not None:
        expression = EXPRESSIONS[label]
        onset = np.array(expression.onset) + rng.normal(0, 0.05 * difficulty, 3)
        duration = np.array(expression.duration) * rng.uniform(1 - 0.2 * difficulty, 1 + 0.2 * difficulty, 3)
        peak = peak_pose(label, person.slant, difficulty)
        strength = person.gain * rng.uniform(1 - 0.25 * difficulty, 1 + 0.1 * difficulty)
        risen = 1 - _FADE_SHARE * fade
        moves = _ease((time[:, None] / risen - onset) / duration)[:, PART_OF_FIELD] * peak * strength
        if fade > 0:
            moves *= 1 - fade * _ease((time[:, None] - risen) / (1 - risen))
    idle = 0.05 * _drift(rng, length, person.rest.size)
    poses: npt.NDArray[np.float32] = np.clip(rest + moves + idle, MIN_POSE, MAX_POSE).astype(np.float32)
    if rng.random() < 0.3 * difficulty:
        poses[int(rng.integers(0, length - 2)), Pose._fields.index("eye_open")] = EYES_SHUT
    return poses


def move_head(rng: np.random.Generator, length: int, difficulty: float) -> npt.NDArray[np.float64]:
    """The position of the head in each frame, float64, length x 5.

    The columns are right, down, tilted, near and turned, each about -1 to 1.
    """
    moves = _drift(rng, length, 5) * np.array([1.0, 1.0, 1.0, 1.0, 0.5])
    motion: npt.NDArray[np.float64] = moves * (0.4 + difficulty) + rng.normal(0, 0.5, 5)
    return motion


def make_lights(rng: np.random.Generator, length: int, difficulty: float) -> list[Light]:
    """The light on each frame: its direction and strength waver, the rest is constant."""
    angle = rng.uniform(-1.1, 1.1) * (0.4 + 0.6 * difficulty) + 0.25 * _drift(rng, length, 1)[:, 0]
    height = rng.uniform(-0.8, 0.1)
    directed = rng.uniform(0.25, 0.45 + 0.3 * difficulty)
    gain = 1.0 + rng.uniform(-0.2, 0.2) * (0.4 + 0.8 * difficulty) + 0.05 * _drift(rng, length, 1)[:, 0]
    gamma = float(np.exp(rng.uniform(-0.25, 0.25) * difficulty))
    lights = []
    for turn, bright in zip(angle, gain, strict=True):
        towards = np.array([math.sin(turn), height, math.cos(turn)])
        x, y, z = (towards / np.linalg.norm(towards)).tolist()
        lights.append(Light((x, y, z), float(directed), float(bright), gamma))
    return lights


def _ease(time: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """0 to 1 while time goes from 0 to 1, slow at both ends."""
    share = np.clip(time, 0.0, 1.0)
    return share * share * (3 - 2 * share)


def _drift(rng: np.random.Generator, length: int, count: int) -> npt.NDArray[np.float64]:
    """Slow motion between about -1 and 1 from a random start, float64, length x count."""
    time = np.arange(length)[:, None] / _WINDOW_FRAMES
    pace, phase = rng.uniform(0.15, 0.6, count), rng.uniform(0, 1, count)
    return np.sin(2 * math.pi * (time * pace + phase))
