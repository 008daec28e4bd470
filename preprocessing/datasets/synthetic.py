"""A made-up set in the layout of CK+: drawn faces that move from neutral to the peak of an expression.

It lets every stage run, and a network learn something, where the genuine set is not at hand. It says
nothing about real faces. A subject's resting face leans towards some other expression, and some expressions
differ mostly in what moves first, so the change over time tells more than the last frame.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from preprocessing.datasets.ckplus import CLASSES, IMAGES, LABEL_OF_CODE, LABELS
from preprocessing.datasets.synthetic_canvas import Gray
from preprocessing.datasets.synthetic_expressions import Pose
from preprocessing.datasets.synthetic_faces import draw_face, make_backdrop
from preprocessing.datasets.synthetic_motion import HEIGHT, WIDTH, act, make_lights, make_person, sway
from services.errors import InvalidInput

MARKER = "synthetic.json"
FORMAT_VERSION = 1
MAX_SUBJECTS = 400
MAX_CLIPS_PER_CLASS = 50

_UNFINISHED = "synthetic.json.unfinished"
"""The marker's name until the last file is written."""


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


def _film(clip: _Clip, settings: _Settings) -> Iterator[Gray]:
    """The frames of a sequence, uint8, `HEIGHT` x `WIDTH`."""
    hard = settings.difficulty
    person = make_person(np.random.default_rng([settings.seed, 1, clip.subject]), hard)
    rng = np.random.default_rng([settings.seed, 2, clip.subject, clip.number])
    poses = act(rng, person, clip.label, clip.length, hard)
    lights = make_lights(rng, clip.length, hard)
    backdrop = make_backdrop(rng)
    heads = sway(rng, clip.length, hard)
    margin = 48
    grain = rng.normal(0.0, 1.5 + 3.0 * hard * rng.random(), (HEIGHT + margin, WIDTH + margin)).astype(np.int8)
    for pose, head, light in zip(poses, heads, lights, strict=True):
        small = draw_face(person, Pose(*pose.tolist()), head, light, backdrop)
        frame = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
        top, left = rng.integers(0, margin, 2)
        noise = grain[top : top + HEIGHT, left : left + WIDTH]
        yield np.asarray(cv2.add(frame, noise, dtype=cv2.CV_8U), np.uint8)
