"""Synthetic sets: drawn faces that move from rest to the peak of an expression, in the layouts of genuine sets.

With them every stage runs, and a network learns something, without the genuine sets. They say nothing about
real faces. A subject's resting face leans towards some other expression, and some expressions differ mostly in
what moves first. With a fade, a network can learn less from the last frame than from the clip;
`benchmarks.synthetic_sets` measures how much less.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from preprocessing.datasets import ckplus, oulu_casia
from preprocessing.datasets.reader import SYNTHETIC_MARKER
from preprocessing.datasets.synthetic_canvas import Picture
from preprocessing.datasets.synthetic_expressions import Pose
from preprocessing.datasets.synthetic_faces import draw_face, make_backdrop, make_tints
from preprocessing.datasets.synthetic_motion import (
    HEIGHT,
    WIDTH,
    make_lights,
    make_person,
    move_face,
    move_head,
)
from services.errors import InvalidInput

MARKER = SYNTHETIC_MARKER
FORMAT_VERSION = 1
MAX_SUBJECTS = 400
MAX_CLIPS_PER_CLASS = 50

_UNFINISHED = "synthetic.json.unfinished"
"""Name of the marker until the last file is written."""

Progress = Callable[[int, int], None]
"""Called after each sequence with the number of sequences done and their total."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    layout: str
    subjects: int
    clips_per_class: int
    seed: int
    difficulty: float
    classes: tuple[str, ...]
    colour: bool
    fade: float

    def as_dict(self) -> dict[str, object]:
        """For the marker; the settings in `usual` appear only if they differ, as in all markers of format 1."""
        values = asdict(self)
        usual = {"layout": ckplus.NAME, "classes": ckplus.CLASSES, "colour": False, "fade": 0.0}
        return {key: value for key, value in values.items() if key not in usual or value != usual[key]}


def write_synthetic_tree(
    root: Path,
    *,
    layout: str = ckplus.NAME,
    subjects: int = 12,
    classes: Sequence[str] | None = None,
    clips_per_class: int = 1,
    seed: int = 0,
    difficulty: float = 0.5,
    fade: float = 0.0,
    colour: bool | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a tree that the reader of `layout` reads.

    `ckplus`: gray PNG frames of 640 x 490 pixels, and label files; some subjects also have an unlabelled
    sequence. `oulu-casia`: colour JPEG frames of 320 x 240 pixels, visible light, strong. Sequences have 8 to
    16 frames. Equal settings and libraries give equal bytes. A complete tree of the same settings is left as it
    is, and an interrupted one is completed.

    Args:
        root: a new or empty folder, or one with a tree of the same settings.
        layout: `ckplus` or `oulu-casia`.
        subjects: number of people, 1 to 400.
        classes: some classes of the layout; None: all.
        clips_per_class: sequences of each class per subject, 1 to 50; `oulu-casia` has room for one.
        seed: equal seeds draw equal faces.
        difficulty: 0 to 1; scales the overlap of resting faces and expressions, and the noise.
        fade: 0 (the last frame shows the peak of the expression) to 1 (it shows the face at rest again, and
            only earlier frames show the expression).
        colour: None: as in the genuine set.
        progress: called after each sequence.

    Raises:
        InvalidInput: a value is out of range, or the folder holds something else.
    """
    if layout not in _CLASSES:
        raise InvalidInput(f"layout is {layout!r}; use one of: {', '.join(_CLASSES)}.", field="layout")
    settings = _Settings(
        layout=layout,
        subjects=subjects,
        clips_per_class=clips_per_class,
        seed=seed,
        difficulty=float(difficulty),
        fade=float(fade),
        classes=_in_layout_order(_CLASSES[layout] if classes is None else classes, _CLASSES[layout]),
        colour=layout == oulu_casia.NAME if colour is None else colour,
    )
    _check(settings)
    clips = list(_plan(settings))
    marker = json.dumps({"format_version": FORMAT_VERSION, **settings.as_dict()}, indent=2) + "\n"
    if _is_complete(root, marker, clips):
        return
    (root / _UNFINISHED).write_text(marker, encoding="utf-8")
    (root / MARKER).unlink(missing_ok=True)
    for done, clip in enumerate(clips, start=1):
        _write_clip(root, clip, settings)
        if progress is not None:
            progress(done, len(clips))
    (root / _UNFINISHED).replace(root / MARKER)


write_ckplus_tree = partial(write_synthetic_tree, layout=ckplus.NAME)
"""`write_synthetic_tree` in the layout of CK+."""

_CLASSES = {ckplus.NAME: ckplus.CLASSES, oulu_casia.NAME: oulu_casia.CLASSES}


@dataclass(frozen=True, kw_only=True)
class _Clip:
    subject: int
    """Counted from 0; this and `number` seed the random numbers of the clip."""

    number: int
    label: str | None
    folders: tuple[str, ...]
    """Folders of its files, relative to the root; in CK+ that of a missing label is empty."""

    frames: tuple[str, ...]
    """Files relative to the root, in temporal order."""

    label_file: str | None


def _in_layout_order(classes: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The classes in the order of the layout, each once."""
    if unknown := [name for name in classes if name not in known]:
        raise InvalidInput(f"classes holds {unknown[0]!r}; use some of: {', '.join(known)}.", field="classes")
    if not classes:
        raise InvalidInput(f"classes is empty; use some of: {', '.join(known)}.", field="classes")
    return tuple(name for name in known if name in classes)


def _check(settings: _Settings) -> None:
    _check_count("subjects", settings.subjects, MAX_SUBJECTS)
    _check_count("clips_per_class", settings.clips_per_class, MAX_CLIPS_PER_CLASS)
    if settings.layout == oulu_casia.NAME and settings.clips_per_class > 1:
        raise InvalidInput(
            f"clips_per_class is {settings.clips_per_class}; the layout {settings.layout} has room for 1.",
            field="clips_per_class",
        )
    if settings.seed < 0:
        raise InvalidInput(f"seed is {settings.seed}; give a whole number from 0.", field="seed")
    _check_share("difficulty", settings.difficulty)
    _check_share("fade", settings.fade)


def _check_count(field: str, value: int, maximum: int) -> None:
    if not 1 <= value <= maximum:
        raise InvalidInput(f"{field} is {value}; give a whole number from 1 to {maximum}.", field=field)


def _check_share(field: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise InvalidInput(f"{field} is {value}; give a number from 0 to 1.", field=field)


def _plan(settings: _Settings) -> Iterator[_Clip]:
    rng = np.random.default_rng([settings.seed, 0])
    planned, person = 0, 0
    for subject in range(settings.subjects):
        # ids leave gaps, as the genuine ones do
        person += 1 + (subject % 5 == 1) + (int(rng.integers(0, 2)) if subject else 0)
        labels: list[str | None] = [
            label for label in settings.classes for _ in range(settings.clips_per_class)
        ]
        if settings.layout == ckplus.NAME and (subject % 3 == 1 or settings.subjects == 1):
            labels.append(None)
        # in random order for each subject; otherwise the number of a sequence would reveal its class
        for number, index in enumerate(rng.permutation(len(labels)), start=1):
            planned += 1
            length, late, first = (int(value) for value in rng.integers((10, 0, 2), (17, 5, 30)))
            # some are shorter than a clip, even in the smallest tree
            length = 8 + subject % 2 if planned % 17 == 4 else length
            label = labels[index]
            if label is not None and settings.layout == oulu_casia.NAME:
                yield _oulu_casia_clip(subject, person, number, label, length)
            else:
                yield _ckplus_clip(subject, person, number, label, first if late == 0 else 1, length)


def _ckplus_clip(subject: int, person: int, number: int, label: str | None, first: int, length: int) -> _Clip:
    folder, stem = f"S{person:03d}/{number:03d}", f"S{person:03d}_{number:03d}"
    names = [f"{stem}_{first + i:08d}" for i in range(length)]
    return _Clip(
        subject=subject,
        number=number,
        label=label,
        folders=(f"{ckplus.IMAGES}/{folder}", f"{ckplus.LABELS}/{folder}"),
        frames=tuple(f"{ckplus.IMAGES}/{folder}/{name}.png" for name in names),
        label_file=None if label is None else f"{ckplus.LABELS}/{folder}/{names[-1]}_emotion.txt",
    )


def _oulu_casia_clip(subject: int, person: int, number: int, label: str, length: int) -> _Clip:
    folder = f"OriginalImg/VL/Strong/P{person:03d}/{oulu_casia.FOLDER_OF_CLASS[label]}"
    return _Clip(
        subject=subject,
        number=number,
        label=label,
        folders=(folder,),
        frames=tuple(f"{folder}/{frame:03d}.jpeg" for frame in range(length)),
        label_file=None,
    )


def _is_complete(root: Path, marker: str, clips: list[_Clip]) -> bool:
    """Whether `root` holds the complete set; if not, make the folder and check that it may be written to."""
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
        yield from (root / name for name in clip.frames)
        if clip.label_file is not None:
            yield root / clip.label_file


def _write_clip(root: Path, clip: _Clip, settings: _Settings) -> None:
    for folder in clip.folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, frame in zip(clip.frames, _render_frames(clip, settings), strict=True):
        _, content = cv2.imencode(Path(name).suffix, frame, _ENCODING[settings.layout])
        (root / name).write_bytes(content.tobytes())
    if clip.label_file is not None:
        code = next(code for code, label in ckplus.LABEL_OF_CODE.items() if label == clip.label)
        (root / clip.label_file).write_text(f"   {code:.7e}\n", encoding="ascii")


_ENCODING = {
    # zlib's fastest settings for pictures with noise
    ckplus.NAME: [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP],
    oulu_casia.NAME: [cv2.IMWRITE_JPEG_QUALITY, 92],
}

_SIZE = {ckplus.NAME: (WIDTH, HEIGHT), oulu_casia.NAME: (320, 240)}
"""Width and height of a frame in pixels, as in the genuine set."""


def _render_frames(clip: _Clip, settings: _Settings) -> Iterator[Picture]:
    """The frames of a sequence, uint8, height x width (x 3: blue, green, red)."""
    difficulty = settings.difficulty
    person = make_person(np.random.default_rng([settings.seed, 1, clip.subject]), difficulty)
    rng = np.random.default_rng([settings.seed, 2, clip.subject, clip.number])
    tints = make_tints(np.random.default_rng([settings.seed, 3, clip.subject])) if settings.colour else None
    length = len(clip.frames)
    poses = move_face(rng, person, clip.label, length, difficulty, settings.fade)
    lights = make_lights(rng, length, difficulty)
    backdrop = make_backdrop(rng)
    heads = move_head(rng, length, difficulty)
    width, height = _SIZE[settings.layout]
    margin = 48
    spread = 1.5 + 3.0 * difficulty * rng.random()
    grain = rng.normal(0.0, spread, (height + margin, width + margin)).astype(np.int8)
    for pose, head, light in zip(poses, heads, lights, strict=True):
        small = draw_face(person, Pose(*pose.tolist()), head, light, backdrop, tints)
        frame = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        top, left = rng.integers(0, margin, 2)
        noise = grain[top : top + height, left : left + width]
        colour_noise = cv2.merge([noise, noise, noise]) if settings.colour else noise
        yield np.asarray(cv2.add(frame, colour_noise, dtype=cv2.CV_8U), np.uint8)
