"""A made-up set in the layout of CK+: drawn faces that move from neutral to the peak of an expression.

It lets every stage run, and a network learn something, where the genuine set is not at hand. It says
nothing about real faces. A subject's resting face leans towards some other expression, and some expressions
differ mostly in what moves first, so the change over time tells more than the last frame.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.datasets.ckplus import CLASSES, IMAGES, LABEL_OF_CODE, LABELS
from services.errors import InvalidInput

MARKER = "synthetic.json"
FORMAT_VERSION = 1
MAX_SUBJECTS = 400
MAX_CLIPS_PER_CLASS = 50

WIDTH, HEIGHT = 640, 490
_SCALE = 2
"""Faces are drawn this many times smaller than written: the detail of a camera, at a quarter of the cost."""

_WINDOW = 10
"""The expression builds up within this many last frames, which is what clips are cut from."""

_SHIFT = 4
"""Bits of sub-pixel precision of OpenCV's drawing calls: motion of less than a pixel must show."""

_UNFINISHED = "synthetic.json.unfinished"
"""The marker's name until the last file is written."""

_Floats = npt.NDArray[np.float32]
_Gray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Settings:
    subjects: int
    clips_per_class: int
    seed: int
    difficulty: float


def write_ckplus_tree(
    root: Path,
    *,
    subjects: int = 12,
    clips_per_class: int = 1,
    seed: int = 0,
    difficulty: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a tree that `read_ckplus` reads: gray PNG frames of 640 x 490 and label files.

    Every subject has `clips_per_class` sequences of 8 to 16 frames for each of the seven classes; some also
    have an unlabelled one. `difficulty` in [0, 1] scales how far resting faces and expressions overlap, and
    the noise. The same settings give the same bytes with the same libraries. `progress` is called after each
    sequence with the number of those done and of all.

    A tree of the same settings that is already there and complete is left as it is; one that was interrupted
    is completed. Raises `InvalidInput` for a value out of range, and for a folder with anything else in it.
    """
    settings = _Settings(
        subjects=subjects, clips_per_class=clips_per_class, seed=seed, difficulty=float(difficulty)
    )
    _check(settings)
    clips = list(_plan(settings))
    marker = json.dumps({"format_version": FORMAT_VERSION, **asdict(settings)}, indent=2) + "\n"
    if _is_there(root, marker, clips):
        return
    (root / _UNFINISHED).write_text(marker, encoding="utf-8")
    (root / MARKER).unlink(missing_ok=True)
    for done, clip in enumerate(clips, start=1):
        _write_clip(root, clip, settings)
        if progress is not None:
            progress(done, len(clips))
    (root / _UNFINISHED).replace(root / MARKER)


# --- what is written where ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Clip:
    subject: int
    """Counted from 0; the random numbers of a subject and a clip hang on these counts."""

    subject_id: str
    number: int
    label: str | None
    first_frame: int
    length: int

    @property
    def folder(self) -> str:
        return f"{self.subject_id}/{self.number:03d}"

    @property
    def frame_names(self) -> list[str]:
        stem = f"{self.subject_id}_{self.number:03d}"
        return [f"{stem}_{self.first_frame + i:08d}" for i in range(self.length)]


def _check(settings: _Settings) -> None:
    _check_count("subjects", settings.subjects, MAX_SUBJECTS)
    _check_count("clips_per_class", settings.clips_per_class, MAX_CLIPS_PER_CLASS)
    if settings.seed < 0:
        raise InvalidInput(f"seed is {settings.seed}; give a whole number from 0.", field="seed")
    if not 0.0 <= settings.difficulty <= 1.0:
        raise InvalidInput(
            f"difficulty is {settings.difficulty}; give a number from 0 to 1.", field="difficulty"
        )


def _check_count(field: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise InvalidInput(f"{field} is {value}; give a whole number from 1 to {most}.", field=field)


def _plan(settings: _Settings) -> Iterator[_Clip]:
    rng = np.random.default_rng([settings.seed, 0])
    planned, person = 0, 0
    for subject in range(settings.subjects):
        # ids leave gaps, as the genuine ones do
        person += 1 + (subject % 5 == 1) + (int(rng.integers(0, 2)) if subject else 0)
        labels: list[str | None] = [label for label in CLASSES for _ in range(settings.clips_per_class)]
        if subject % 3 == 1 or settings.subjects == 1:
            labels.append(None)
        # in a new order for each subject, or the number of a sequence would tell its class
        for number, index in enumerate(rng.permutation(len(labels)), start=1):
            planned += 1
            length, late, first = (int(value) for value in rng.integers((10, 0, 2), (17, 5, 30)))
            yield _Clip(
                subject=subject,
                subject_id=f"S{person:03d}",
                number=number,
                label=labels[index],
                first_frame=first if late == 0 else 1,
                # some are shorter than a window, in the smallest of trees too
                length=8 + subject % 2 if planned % 17 == 4 else length,
            )


def _is_there(root: Path, marker: str, clips: list[_Clip]) -> bool:
    """Whether nothing is left to do; else `root` is a folder that may be written to."""
    if root.exists() and not root.is_dir():
        raise InvalidInput(f"root is {root}, which is a file; give a new or empty folder.", field="root")
    root.mkdir(parents=True, exist_ok=True)
    for name in (MARKER, _UNFINISHED):
        path = root / name
        if path.is_file():
            if path.read_text(encoding="utf-8") != marker:
                raise InvalidInput(
                    f"root is {root}, which holds a synthetic set of other settings ({name}); "
                    "give another folder or delete this one.",
                    field="root",
                )
            return name == MARKER and all(path.is_file() for path in _files(root, clips))
    if any(root.iterdir()):
        raise InvalidInput(
            f"root is {root}, which is not empty and holds no synthetic set; give a new or empty folder.",
            field="root",
        )
    return False


def _files(root: Path, clips: list[_Clip]) -> Iterator[Path]:
    for clip in clips:
        yield from (root / IMAGES / clip.folder / f"{name}.png" for name in clip.frame_names)
        if clip.label is not None:
            yield root / LABELS / clip.folder / f"{clip.frame_names[-1]}_emotion.txt"


def _write_clip(root: Path, clip: _Clip, settings: _Settings) -> None:
    images, labels = root / IMAGES / clip.folder, root / LABELS / clip.folder
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(clip.frame_names, _film(clip, settings), strict=True):
        # the fastest of zlib's ways for pictures with noise
        _, png = cv2.imencode(
            ".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
        )
        (images / f"{name}.png").write_bytes(png.tobytes())
    if clip.label is not None:
        code = next(code for code, label in LABEL_OF_CODE.items() if label == clip.label)
        path = labels / f"{clip.frame_names[-1]}_emotion.txt"
        path.write_text(f"   {code:.7e}\n", encoding="ascii")


# --- how a face moves --------------------------------------------------------------------------------------


class _Pose(NamedTuple):
    """How far each part of the face is moved: 0 at rest, 1 at a strong expression, some also below 0."""

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


_PARTS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2])
"""For each field of a pose what it moves with: 0 the brows, 1 the eyes, 2 nose and mouth."""


@dataclass(frozen=True, kw_only=True)
class _Expression:
    apex: _Pose
    onset: tuple[float, float, float]
    """When brows, eyes, mouth start, as a share of the window."""

    duration: tuple[float, float, float]
    """How long each takes to its peak, as a share of the window."""


_EXPRESSIONS: dict[str, _Expression] = {
    "anger": _Expression(
        apex=_Pose(
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
    "disgust": _Expression(
        apex=_Pose(
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
    "fear": _Expression(
        apex=_Pose(
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
    "happy": _Expression(
        apex=_Pose(
            eye_open=-0.4, cheek=0.9, upper_lip=0.25, corner_left=1.0, corner_right=1.0, stretch=0.5, jaw=0.15
        ),
        onset=(0.20, 0.35, 0.10),
        duration=(0.50, 0.45, 0.60),
    ),
    "sadness": _Expression(
        apex=_Pose(
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
    "surprise": _Expression(
        apex=_Pose(inner_brow=1.0, outer_brow=1.0, eye_open=0.9, stretch=-0.35, jaw=1.0),
        onset=(0.30, 0.28, 0.25),
        duration=(0.20, 0.18, 0.22),
    ),
    "contempt": _Expression(
        apex=_Pose(eye_open=-0.15, cheek=0.15, corner_left=0.9, corner_right=-0.1, stretch=0.1, press=0.45),
        onset=(0.20, 0.35, 0.45),
        duration=(0.30, 0.25, 0.25),
    ),
}

_ALIKE = (("fear", "surprise", 0.7), ("anger", "disgust", 0.5), ("happy", "contempt", 0.4))
"""Pairs whose peaks are drawn towards each other, and how far at difficulty 1 (1: the same peak)."""

_SHUT = -1.0
"""The `eye_open` of a blink; no expression comes near it."""

_LOWEST = np.array(_Pose(-1.3, -1.0, -0.3, -0.75, 0.0, 0.0, -0.3, -1.3, -1.3, -0.5, 0.0, -0.6), np.float32)
_HIGHEST = np.array(_Pose(1.4, 1.3, 1.3, 1.2, 1.2, 1.2, 1.2, 1.3, 1.3, 1.2, 1.2, 1.2), np.float32)


@dataclass(frozen=True, kw_only=True)
class _Person:
    """What stays the same over all sequences of a subject; lengths in half face widths, tones 0 to 255."""

    half_width: float
    """Of the face, in drawn pixels."""

    centre: tuple[float, float]
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
    rest: _Floats
    """The resting pose."""

    gain: float
    """How strongly this person shows what it feels."""

    slant: float
    """-1 or 1: the side of a one-sided smile."""


def _film(clip: _Clip, settings: _Settings) -> Iterator[_Gray]:
    """The frames of a sequence, uint8, `HEIGHT` x `WIDTH`."""
    hard = settings.difficulty
    person = _meet(np.random.default_rng([settings.seed, 1, clip.subject]), hard)
    rng = np.random.default_rng([settings.seed, 2, clip.subject, clip.number])
    poses = _act(rng, person, clip.label, clip.length, hard)
    lights = _light(rng, clip.length, hard)
    backdrop = _backdrop(rng)
    sway = _drift(rng, clip.length, 5) * np.array([1.0, 1.0, 1.0, 1.0, 0.5])
    sway = sway * (0.4 + hard) + rng.normal(0, 0.5, 5)
    margin = 48
    grain = rng.normal(0.0, 1.5 + 3.0 * hard * rng.random(), (HEIGHT + margin, WIDTH + margin)).astype(np.int8)
    for pose, head, light in zip(poses, sway, lights, strict=True):
        small = _draw(person, _Pose(*pose.tolist()), head, light, backdrop)
        frame = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
        top, left = rng.integers(0, margin, 2)
        noise = grain[top : top + HEIGHT, left : left + WIDTH]
        yield np.asarray(cv2.add(frame, noise, dtype=cv2.CV_8U), np.uint8)


def _meet(rng: np.random.Generator, hard: float) -> _Person:
    """A subject drawn at random."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    skin = between(95, 205)
    hair = between(20, 75) if rng.random() < 0.75 else between(120, 190)
    if abs(hair - skin) < 35:
        hair = skin - 45
    leaning = np.array(_EXPRESSIONS[str(rng.choice(CLASSES))].apex, np.float32)
    rest = hard * (between(0.4, 1.0) * leaning + rng.normal(0, 0.35, leaning.size))
    bearded = rng.random() < 0.2
    return _Person(
        half_width=between(46, 58),
        centre=(WIDTH / _SCALE / 2 + between(-22, 22), HEIGHT / _SCALE / 2 + between(-10, 10)),
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


def _act(rng: np.random.Generator, person: _Person, label: str | None, length: int, hard: float) -> _Floats:
    """The pose in each frame, length x fields: at rest first, at its peak last."""
    start = max(0, length - _WINDOW)
    time = (np.arange(length) - start) / (length - 1 - start)
    rest = person.rest + rng.normal(0, 0.06 * hard, person.rest.size)
    moves = np.zeros((length, person.rest.size))
    if label is not None:
        expression = _EXPRESSIONS[label]
        onset = np.array(expression.onset) + rng.normal(0, 0.05 * hard, 3)
        duration = np.array(expression.duration) * rng.uniform(1 - 0.2 * hard, 1 + 0.2 * hard, 3)
        share = np.clip((time[:, None] - onset) / duration, 0.0, 1.0)
        strength = person.gain * rng.uniform(1 - 0.25 * hard, 1 + 0.1 * hard)
        moves = (share * share * (3 - 2 * share))[:, _PARTS] * _peak(label, person.slant, hard) * strength
    idle = 0.05 * _drift(rng, length, person.rest.size)
    poses: _Floats = np.clip(rest + moves + idle, _LOWEST, _HIGHEST).astype(np.float32)
    if rng.random() < 0.3 * hard:
        poses[int(rng.integers(0, length - 2)), _Pose._fields.index("eye_open")] = _SHUT
    return poses


def _peak(label: str, slant: float, hard: float) -> _Floats:
    apex = np.array(_EXPRESSIONS[label].apex, np.float32)
    for one, other, share in _ALIKE:
        if label in (one, other):
            twin = np.array(_EXPRESSIONS[other if label == one else one].apex, np.float32)
            apex += (twin - apex) * np.float32(0.5 * share * hard)
    if slant < 0:
        left, right = _Pose._fields.index("corner_left"), _Pose._fields.index("corner_right")
        apex[[left, right]] = apex[[right, left]]
    return apex


def _drift(rng: np.random.Generator, length: int, count: int) -> npt.NDArray[np.float64]:
    """Slow wandering between about -1 and 1 that starts anywhere: length x count."""
    time = np.arange(length)[:, None] / _WINDOW
    pace, phase = rng.uniform(0.15, 0.6, count), rng.uniform(0, 1, count)
    return np.sin(2 * math.pi * (time * pace + phase))


class _Light(NamedTuple):
    towards: tuple[float, float, float]
    """Where the light comes from: right, down, front; of length 1."""

    directed: float
    """The share of light that has a direction."""

    gain: float
    gamma: float


def _light(rng: np.random.Generator, length: int, hard: float) -> list[_Light]:
    angle = rng.uniform(-1.1, 1.1) * (0.4 + 0.6 * hard) + 0.25 * _drift(rng, length, 1)[:, 0]
    height = rng.uniform(-0.8, 0.1)
    directed = rng.uniform(0.25, 0.45 + 0.3 * hard)
    gain = 1.0 + rng.uniform(-0.2, 0.2) * (0.4 + 0.8 * hard) + 0.05 * _drift(rng, length, 1)[:, 0]
    gamma = float(np.exp(rng.uniform(-0.25, 0.25) * hard))
    lights = []
    for turn, bright in zip(angle, gain, strict=True):
        towards = np.array([math.sin(turn), height, math.cos(turn)])
        x, y, z = (towards / np.linalg.norm(towards)).tolist()
        lights.append(_Light((x, y, z), float(directed), float(bright), gamma))
    return lights


def _backdrop(rng: np.random.Generator) -> _Gray:
    height, width = HEIGHT // _SCALE, WIDTH // _SCALE
    coarse = rng.uniform(-12, 12, (4, 5)).astype(np.float32) + np.float32(rng.uniform(70, 190))
    fine: _Floats = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
    return fine.astype(np.uint8)


# --- how a face is drawn -----------------------------------------------------------------------------------


_Points = _Floats | list[tuple[float, float]]

_EYE_Y = -0.2


class _Canvas:
    """A gray picture that is drawn on in the face's own coordinates: half face widths from its middle."""

    def __init__(self, backdrop: _Gray, person: _Person, head: npt.NDArray[np.float64]) -> None:
        """`head`, about -1 to 1 each: how far the head is right, down, tilted, near, and turned."""
        right, down, tilt, near, turn = head.tolist()
        angle = math.radians(1.5 * tilt)
        self.image = backdrop.copy()
        self.soft = np.full_like(backdrop, 128)
        """Broad shades, darker below 128 and lighter above it."""

        self.fine = np.full_like(backdrop, 128)
        """Folds of the skin, likewise."""

        self.unit = person.half_width * (1 + 0.01 * near)
        self.axes = self.unit * np.array(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        )
        self.origin = np.add(person.centre, [2 * right, 2 * down])
        self._turn = 0.05 * turn

    def fill(self, points: _Points, tone: float, *, on: _Gray | None = None, depth: float = 1.0) -> None:
        """A filled outline. `depth`: how far in front, so how far it goes when the head turns."""
        target = self.image if on is None else on
        cv2.fillPoly(target, [self._pixels(points, depth)], _tone(tone), cv2.LINE_AA, _SHIFT)

    def line(
        self, points: _Points, tone: float, width: float, *, on: _Gray | None = None, depth: float = 1.0
    ) -> None:
        """An open line."""
        target = self.image if on is None else on
        thickness = max(1, round(width * self.unit))
        pixels = self._pixels(points, depth)
        cv2.polylines(target, [pixels], False, _tone(tone), thickness, cv2.LINE_AA, _SHIFT)

    def apply_shades(self) -> None:
        """Lays what was drawn on `soft` and `fine` over the picture."""
        for layer, blur in ((self.soft, 0.075), (self.fine, 0.022)):
            cv2.multiply(
                self.image, cv2.GaussianBlur(layer, (0, 0), blur * self.unit), self.image, scale=1 / 128
            )

    def _pixels(self, points: _Points, depth: float) -> npt.NDArray[np.int32]:
        shifted = np.asarray(points, np.float64) + np.array([self._turn * depth, 0.0])
        placed: npt.NDArray[np.float64] = shifted @ self.axes + self.origin
        return np.round(placed * (1 << _SHIFT)).astype(np.int32)


def _draw(person: _Person, pose: _Pose, head: npt.NDArray[np.float64], light: _Light, backdrop: _Gray) -> _Gray:
    """One picture, uint8, `_SCALE` times smaller than a frame."""
    canvas = _Canvas(backdrop, person, head)
    _draw_head(canvas, person, pose)
    _shade_form(canvas, person, pose)
    _shade_brow_folds(canvas, person, pose)
    for side in (-1.0, 1.0):
        _shade_cheek_folds(canvas, person, pose, side)
    canvas.apply_shades()
    for side in (-1.0, 1.0):
        _draw_eye(canvas, person, pose, side)
        _draw_brow(canvas, person, pose, side)
    _draw_nose(canvas, person, pose)
    _draw_mouth(canvas, person, pose)
    _draw_hair(canvas, person)
    return _lit(canvas, light)


def _draw_head(canvas: _Canvas, person: _Person, pose: _Pose) -> None:
    if person.hair in _BEHIND:
        half_width, top, bottom = _BEHIND[person.hair]
        behind = _oval(0.0, (top + bottom) / 2, half_width, (bottom - top) / 2)
        canvas.fill(behind, person.hair_tone, depth=0.0)
    shoulders = _mirrored([0.0, 1.0, 2.2, 2.6, 2.6], [1.72, 1.72, 2.05, 2.6, 4.0])
    neck = _mirrored([0.55, 0.62, 0.0], [0.6, 1.8, 2.0])
    canvas.fill(_curve(shoulders), person.clothes, depth=0.0)
    canvas.fill(neck, person.skin * 0.72, depth=0.0)
    if person.hair != "long":
        for side in (-1.0, 1.0):
            canvas.fill(_oval(side, -0.08, 0.12, 0.26), person.skin * 0.85, depth=0.0)
    jaw, chin, drop = person.jaw, person.chin, 0.16 * pose.jaw
    outline = _mirrored(
        [0.0, 0.55, 0.88, 1.0, 0.98, 0.45 + 0.45 * jaw, 0.7 * jaw, 0.4 * jaw, 0.14],
        [-1.33, -1.22, -0.85, -0.35, 0.1, 0.5, 0.85 + 0.5 * drop, chin - 0.08 + drop, chin + drop],
    )
    canvas.fill(_curve(outline), person.skin, depth=0.3)
    if person.beard > 0:
        low = chin + drop
        beard = _mirrored(
            [0.0, 0.42, 0.74, 0.9, 0.8 * jaw, 0.4 * jaw, 0.14],
            [0.55, 0.58, 0.5, 0.2, 0.75, low - 0.12, low - 0.02],
        )
        canvas.fill(
            _curve(beard), 128 * _mixed(1.0, person.hair_tone / person.skin, person.beard), on=canvas.soft
        )


def _shade_form(canvas: _Canvas, person: _Person, pose: _Pose) -> None:
    tip = _nose_tip(person, pose)
    for side in (-1.0, 1.0):
        canvas.fill(_oval(side * person.eye_gap, -0.24, 0.30, 0.19), 104, on=canvas.soft)
        canvas.fill(_oval(side * 0.17, 0.02, 0.05, 0.28), 112, on=canvas.soft)
        cheek = _oval(side * 0.62, 0.22 - 0.1 * pose.cheek, 0.2, 0.16)
        canvas.fill(cheek, 136 + 10 * pose.cheek, on=canvas.soft)
    canvas.fill(_oval(0, -0.85, 0.5, 0.25), 136, on=canvas.soft)
    canvas.fill(_oval(0, (tip - 0.2) / 2, 0.07, (tip + 0.2) / 2), 146, on=canvas.soft)
    canvas.fill(_oval(0, tip + 0.12, 0.2, 0.05), 100, on=canvas.soft)
    canvas.fill(_oval(0, person.mouth + 0.25 + 0.2 * pose.jaw, 0.24, 0.05), 104, on=canvas.soft)


def _shade_brow_folds(canvas: _Canvas, person: _Person, pose: _Pose) -> None:
    brow = _EYE_Y - person.brow_height
    raised = 0.6 * max(pose.inner_brow, 0.0) + 0.4 * max(pose.outer_brow, 0.0)
    for y in (brow - 0.22, brow - 0.34):
        across = _curve(_points([-0.5, 0.0, 0.5], [y, y - 0.03, y]), closed=False)
        canvas.line(across, 128 - 26 * raised, 0.035, on=canvas.fine)
    for side in (-1.0, 1.0):
        between = _points([side * 0.06, side * 0.05], [brow - 0.06, brow + 0.14])
        canvas.line(between, 128 - 38 * max(pose.frown, 0.0), 0.04, on=canvas.fine)
        for y in (-0.16, -0.06, 0.04):
            bridge = _points([side * 0.02, side * 0.15], [y - 0.02, y + 0.04])
            canvas.line(bridge, 128 - 34 * pose.nose_wrinkle, 0.035, on=canvas.fine)


def _shade_cheek_folds(canvas: _Canvas, person: _Person, pose: _Pose, side: float) -> None:
    corner = pose.corner_left if side < 0 else pose.corner_right
    tip, eye = _nose_tip(person, pose), person.eye_gap
    to_mouth = _points([0.22, 0.40 + 0.05 * corner, 0.48 + 0.08 * corner], [tip - 0.02, 0.45, 0.66], side)
    pulled = 8 + 18 * max(pose.upper_lip, 0.0) + 16 * max(corner, 0.0) + 8 * pose.cheek
    canvas.line(_curve(to_mouth, closed=False), 128 - pulled, 0.06, on=canvas.fine)
    below_mouth = _points([0.40, 0.46], [person.mouth + 0.1, person.mouth + 0.26], side)
    canvas.line(below_mouth, 128 + 26 * min(corner, 0.0), 0.06, on=canvas.fine)
    below_eye = _points([eye - 0.15, eye, eye + 0.2], [-0.04, 0.0, -0.06], side)
    canvas.line(below_eye, 128 - 26 * pose.cheek, 0.04, on=canvas.fine)


def _draw_eye(canvas: _Canvas, person: _Person, pose: _Pose, side: float) -> None:
    x, half, height = side * person.eye_gap, person.eye_width, person.eye_height
    up = max(0.012, height * (1 + 0.75 * pose.eye_open))
    low = max(0.006, height * (0.62 + 0.25 * max(pose.eye_open, 0.0)) - 0.05 * pose.cheek)
    if pose.eye_open <= _SHUT:
        up, low = 0.008, 0.006
    across = x + half * np.array([-1.0, -0.5, 0.05 * side, 0.55, 1.0])
    upper = _curve(_points(across, _EYE_Y - up * np.array([0.0, 0.8, 1.0, 0.75, 0.0])), closed=False)
    across = x + half * np.array([1.0, 0.5, -0.5, -1.0])
    lower = _curve(_points(across, _EYE_Y + low * np.array([0.0, 0.85, 0.85, 0.0])), closed=False)
    opening = np.concatenate([upper, lower])
    within, eye = np.zeros_like(canvas.image), np.full_like(canvas.image, round(person.skin * 0.5 + 125))
    canvas.fill(opening, 255, on=within)
    canvas.fill(_oval(x, _EYE_Y - 0.01, 0.085, 0.085), person.iris, on=eye)
    canvas.fill(_oval(x, _EYE_Y - 0.01, 0.04, 0.04), 8, on=eye)
    canvas.fill(_oval(x - 0.03, _EYE_Y - 0.04, 0.016, 0.016), 240, on=eye)
    cv2.copyTo(eye, within, canvas.image)
    canvas.line(upper, person.skin * 0.28, 0.04)
    canvas.line(lower, person.skin * 0.62, 0.02)
    crease = upper - np.array([0.0, 0.05 + 0.02 * pose.eye_open], np.float32)
    canvas.line(crease, person.skin * 0.7, 0.02)


def _draw_brow(canvas: _Canvas, person: _Person, pose: _Pose, side: float) -> None:
    base, eye = _EYE_Y - person.brow_height, person.eye_gap
    inner = base - 0.13 * pose.inner_brow + 0.04 * pose.nose_wrinkle
    middle = base - person.brow_arch - 0.06 * (pose.inner_brow + pose.outer_brow)
    outer = base + 0.04 - 0.12 * pose.outer_brow
    xs = [eye - 0.25 - 0.07 * pose.frown, eye - 0.02, eye + 0.15, eye + 0.31]
    ys = np.array([inner, middle, (middle + outer) / 2 - 0.015, outer])
    thick = person.brow_thickness * np.array([0.75, 1.0, 0.85, 0.25])
    above = _curve(_points(xs, ys - thick, side), closed=False)
    below = _curve(_points(xs, ys + thick, side), closed=False)
    canvas.fill(np.concatenate([above, below[::-1]]), person.brow)


def _draw_nose(canvas: _Canvas, person: _Person, pose: _Pose) -> None:
    wide, tip = person.nose_width * (1 + 0.2 * pose.nose_wrinkle), _nose_tip(person, pose)
    for side in (-1.0, 1.0):
        canvas.fill(_oval(side * 0.5 * wide, tip + 0.03, 0.055, 0.028), person.skin * 0.35, depth=1.6)
        wing = _points([0.9 * wide, 1.08 * wide, 0.85 * wide], [tip - 0.08, tip - 0.01, tip + 0.05], side)
        canvas.line(_curve(wing, closed=False), person.skin * 0.62, 0.025, depth=1.5)


def _nose_tip(person: _Person, pose: _Pose) -> float:
    return person.nose_tip - 0.05 * pose.nose_wrinkle


def _draw_mouth(canvas: _Canvas, person: _Person, pose: _Pose) -> None:
    half = person.mouth_width * (1 + 0.25 * pose.stretch)
    lip = person.lip_height * (1 - 0.6 * max(pose.press, 0.0))
    low = person.mouth + 0.07 * pose.jaw
    left = (-half - 0.04 * pose.corner_left, low - 0.14 * pose.corner_left)
    right = (half + 0.04 * pose.corner_right, low - 0.14 * pose.corner_right)
    # a smile lifts the middle too, but far less than the corners
    ceiling = person.mouth - 0.03 * (pose.corner_left + pose.corner_right) - 0.09 * pose.upper_lip
    gap = 0.34 * pose.jaw + 0.06 * max(pose.upper_lip, 0.0)
    floor = ceiling + gap

    def from_corner_to_corner(xs: list[float], ys: list[float]) -> _Floats:
        return _curve(
            np.array([left, *zip(np.multiply(xs, half), ys, strict=True), right], np.float32), closed=False
        )

    top = from_corner_to_corner(
        [-0.5, -0.12, 0.0, 0.12, 0.5], [ceiling - share * lip for share in (0.75, 1.0, 0.85, 1.0, 0.75)]
    )
    upper = from_corner_to_corner([-0.5, 0.0, 0.5], [ceiling + 0.01, ceiling + 0.02, ceiling + 0.01])
    side = floor + 0.01 - 0.12 * gap
    lower = from_corner_to_corner([-0.5, 0.0, 0.5], [side, floor + 0.02, side])
    bottom = from_corner_to_corner([-0.5, 0.0, 0.5], [floor + share * lip for share in (0.85, 1.25, 0.85)])
    if person.moustache > 0:
        high = person.mouth - 0.09 * pose.upper_lip
        hairs = _mirrored(
            [0.0, 0.5 * half, 1.05 * half, 0.0], [high - 0.19, high - 0.17, low + 0.02, high - 0.02]
        )
        canvas.fill(_curve(hairs), _mixed(person.skin, person.hair_tone, 0.7 * person.moustache), depth=1.2)
    canvas.fill(np.concatenate([top, bottom[::-1]]), person.lip)
    if gap > 0.02:
        canvas.fill(np.concatenate([upper, lower[::-1]]), 28)
        teeth = upper + np.clip(0.55 * (lower - upper), 0.0, np.array([0.0, 0.09], np.float32))
        canvas.fill(np.concatenate([upper, teeth[::-1]]), person.skin * 0.4 + 135)
    canvas.line(upper, person.lip * 0.5, 0.022)
    for x, y in (left, right):
        canvas.fill(_oval(x, y, 0.03, 0.025), person.lip * 0.6)


_BEHIND = {"long": (1.28, -1.5, 1.35), "full": (1.2, -1.5, 0.1)}
"""Hair behind the head: half width, top, bottom."""

_FRONT = {
    "cropped": (-0.25, -1.42, 0.0),
    "long": (-0.05, -1.52, 0.12),
    "parted": (-0.25, -1.42, 0.18),
    "full": (-0.05, -1.52, 0.0),
}
"""Hair on the head: where it ends at the sides, its top, how far it is swept aside; the bald have none."""


def _draw_hair(canvas: _Canvas, person: _Person) -> None:
    if person.hair not in _FRONT:
        return
    end, top, sweep = _FRONT[person.hair]
    line = person.hairline
    outside = _points([-1.03, -1.07, -0.8, 0.0, 0.8, 1.07, 1.03], [end, -0.6, -1.15, top, -1.15, -0.6, end])
    inside = _points(
        [0.93, 0.72, 0.2, -0.3, -0.72, -0.93],
        [-0.45, line + 0.12 - sweep, line - sweep, line + sweep, line + 0.14 + sweep, -0.45],
    )
    canvas.fill(_curve(np.concatenate([outside, inside])), person.hair_tone, depth=0.2)


def _lit(canvas: _Canvas, light: _Light) -> _Gray:
    """The picture under this light, as if the head were half an ellipsoid."""
    height, width = canvas.image.shape
    # light varies slowly over the picture: a sixteenth of the pixels will do
    step = 4
    ys, xs = np.mgrid[0 : height + step : step, 0 : width + step : step]
    points = (np.stack([xs, ys], axis=-1) - canvas.origin) @ np.linalg.inv(canvas.axes) / np.array([1.12, 1.48])
    # what lies beyond the head is lit as its rim is
    points /= np.maximum(1.0, np.linalg.norm(points, axis=-1, keepdims=True) / 0.98)
    right, down, front = light.towards
    out = np.sqrt(1 - np.square(points).sum(axis=-1))
    facing = np.maximum(points[..., 0] * right + points[..., 1] * down + out * front, 0.0)
    coarse = (1 - light.directed + 1.25 * light.directed * facing).astype(np.float32)
    shade = cv2.resize(coarse, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)[:height, :width]
    levels = 255 * light.gain * np.power(np.arange(256) / 255, light.gamma)
    image = cv2.LUT(canvas.image, np.clip(levels, 0, 255).astype(np.uint8))
    return np.asarray(cv2.multiply(image, shade, dtype=cv2.CV_8U), np.uint8)


def _tone(value: float) -> tuple[float]:
    return (min(max(value, 0.0), 255.0),)


def _mixed(one: float, other: float, share: float) -> float:
    return one + (other - one) * share


def _points(xs: npt.ArrayLike, ys: npt.ArrayLike, side: float = 1.0) -> _Floats:
    """Points of these coordinates; on the left with `side` -1."""
    return np.stack([np.asarray(xs, np.float32) * np.float32(side), np.asarray(ys, np.float32)], axis=1)


def _mirrored(xs: list[float], ys: list[float]) -> _Floats:
    """A closed outline from its right half, which starts and ends at the middle or near to it."""
    right = _points(xs, ys)
    # a point on the middle line is its own mirror image
    left = right[right[:, 0] != 0][::-1] * np.array([-1.0, 1.0], np.float32)
    return np.concatenate([right, left])


def _oval(x: float, y: float, half_width: float, half_height: float) -> _Floats:
    return np.array([x, y], np.float32) + _CIRCLE * np.array([half_width, half_height], np.float32)


def _curve(points: _Floats, *, closed: bool = True) -> _Floats:
    """A smooth line through the points."""
    ends = (points[-1:], points[:2]) if closed else (points[:1], points[-1:])
    padded = np.concatenate([ends[0], points, ends[1]])
    spans = np.stack([padded[i : len(padded) - 3 + i] for i in range(4)], axis=1)
    smooth = (_SPLINE @ spans).reshape(-1, 2)
    return smooth if closed else np.concatenate([smooth, points[-1:]])


_ANGLES = np.arange(24) * (math.pi / 12)
_CIRCLE = _points(np.cos(_ANGLES), np.sin(_ANGLES))

_T = np.arange(5, dtype=np.float32) / 5
_SPLINE = 0.5 * np.stack(
    [-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, -(_T**2) + _T**3], axis=1
)
"""Catmull and Rom's spline: how much each of four neighbours counts at five places between the middle two."""
