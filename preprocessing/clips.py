"""Makes a face clip from a sequence: some of its frames, one person's face, square crops and CLAHE copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import cv2
import numpy as np

from preprocessing.datasets.reader import FrameSequence
from preprocessing.face_tracks import fill_gaps, follow_one_face, median_box
from preprocessing.faces import FaceBox, FaceDetector, Image
from preprocessing.frame_sampling import FrameSampling, sample_windows
from preprocessing.frames import ReadFrames, read_chosen_frames, read_last_frames
from services.clip_cache import CacheRecord, Frames
from services.errors import InvalidInput


class BoxChoice(StrEnum):
    """Which box a frame is cropped to."""

    FRAME = "frame"
    """Each frame is cropped to its own box."""

    MEDIAN = "median"
    """All frames are cropped to the clip's median box: it does not jitter, but the head moves in it."""


class FewFaces(StrEnum):
    """What happens to a clip with a face in too few of its frames."""

    DROP = "drop"
    """The clip is left out and listed with the reason."""

    KEEP = "keep"
    """The clip is kept and flagged."""


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How clips are made; part of the cache's fingerprint.

    The defaults are the paper's (sections 3.3 and 4.1) except for the detector: YuNet is several times faster
    and finds faces that are turned or small; the paper used `res10`.
    """

    frames: int = 10
    """Frames per window."""

    frame_size: int = 112
    """Width and height of a cropped face in pixels."""

    detector: str = "yunet"
    """A name that `make_detector` knows."""

    box: BoxChoice = BoxChoice.FRAME

    min_face_share: float = 0.5
    """Minimum share of frames with a detected face (0 to 1); a clip below it has too few faces."""

    few_faces: FewFaces = FewFaces.DROP
    """What happens to a clip below `min_face_share`."""

    clahe_clip_limit: float = 2.0
    clahe_tiles: int = 8
    """Tiles along each side of a crop."""

    frame_sampling: FrameSampling = FrameSampling.LAST
    """Which frames of a sequence its windows are made of."""

    windows: int = 1
    """Windows per clip: each is a training sample, and the probabilities of a clip are the mean over them."""

    def __post_init__(self) -> None:
        """Raises `InvalidInput` for a value out of range."""
        if not 0.0 <= self.min_face_share <= 1.0:
            raise InvalidInput(
                f"min_face_share is {self.min_face_share}; give a share from 0 to 1.", field="min_face_share"
            )
        if self.frames < 1:
            raise InvalidInput(f"frames is {self.frames}; give 1 or more.", field="frames")
        if self.frame_size < 16:
            raise InvalidInput(f"frame_size is {self.frame_size}; give 16 or more.", field="frame_size")
        if self.windows < 1:
            raise InvalidInput(f"windows is {self.windows}; give 1 or more.", field="windows")
        if self.windows > 1 and self.frame_sampling is FrameSampling.LAST:
            raise InvalidInput(
                f"windows is {self.windows}, but the last frames make one window; set frame_sampling to "
                "uniform or middle.",
                field="windows",
            )

    def as_dict(self) -> dict[str, Any]:
        """The settings by their stored names, for the fingerprint and the manifest."""
        return {
            _STORED_NAMES.get(each.name, each.name): getattr(self, each.name)
            for each in fields(self)
            if each.name not in _LATER_SETTINGS or getattr(self, each.name) != each.default
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> ClipSettings:
        """The settings of a manifest; keys that are no settings are ignored, missing ones get defaults.

        Raises:
            InvalidInput: a value is out of range.
            ValueError: `box`, `few_faces` or `frame_sampling` is no known choice.
        """
        names = {_STORED_NAMES.get(each.name, each.name): each.name for each in fields(cls)}
        values = {names[key]: value for key, value in stored.items() if key in names}
        for name, choices in _CHOICES.items():
            if name in values:
                values[name] = choices(values[name])
        return cls(**values)

    def sample(self, available: int) -> tuple[tuple[int, ...], ...]:
        """The frames of each window of a sequence, from its number of readable frames; see `sample_windows`."""
        return sample_windows(available, frames=self.frames, windows=self.windows, sampling=self.frame_sampling)


_CHOICES: dict[str, type[StrEnum]] = {
    "box": BoxChoice,
    "few_faces": FewFaces,
    "frame_sampling": FrameSampling,
}

_STORED_NAMES = {"min_face_share": "least_faces"}
"""Settings whose key in fingerprints and manifests is not the name of their field."""

_LATER_SETTINGS = frozenset({"frame_sampling", "windows"})
"""Settings that are stored only if they differ from their default, so that older fingerprints stay valid."""


@dataclass(frozen=True, kw_only=True)
class FaceClip:
    """A finished clip: its windows, one after another.

    Both arrays are uint8, (windows * frames) x size x size (x 3 in colour: red, green, blue).
    """

    record: CacheRecord
    plain: Frames
    clahe: Frames


@dataclass(frozen=True, kw_only=True)
class DroppedClip:
    """A sequence that gives no clip."""

    clip_id: str
    reason: str


def make_clip(
    sequence: FrameSequence, *, settings: ClipSettings, detector: FaceDetector, colour: bool = False
) -> FaceClip | DroppedClip:
    """Crop the face in some of the readable frames of a sequence; `settings.frame_sampling` says in which.

    A frame that cannot be read is skipped, and a frame without a face gets the box of the nearest frame that
    has one. If there are too few frames, the last one is repeated (paper, section 4.1). The clip is flagged for
    all of this. One face is followed through the frames of all windows. A sequence without a readable frame is
    dropped; `settings.few_faces` decides about one with too few faces. A clip that is kept without any face
    holds whole frames instead of crops.

    Args:
        sequence: a labelled sequence of a dataset.
        settings: how the clip is made.
        detector: the detector that `settings.detector` names.
        colour: keep colours (RGB crops); otherwise all frames are decoded to gray (paper, section 4.1).

    Raises:
        OSError: the disk failed.
    """
    read, windows = _read_windows(sequence, settings, colour=colour)
    frames = read.frames
    if not frames:
        why = f": {read.flags[0]}" if read.flags else ""
        return DroppedClip(clip_id=sequence.clip_id, reason=f"none of its frames can be read as an image{why}")
    images = [frame.image for frame in frames]
    faces = [find_faces(image, detector) for image in images]
    found = follow_one_face(faces)
    with_face = len(found) - found.count(None)
    if settings.few_faces is FewFaces.DROP and too_few_faces(found, settings):
        return DroppedClip(clip_id=sequence.clip_id, reason=_too_few_reason(with_face, len(found), settings))

    crops = crop_faces(images, found, settings)
    cached = [number for window in windows for number in window]
    recorded = [found[number] for number in cached]
    record = CacheRecord(
        clip_id=sequence.clip_id,
        subject=sequence.subject,
        label=sequence.label,
        source=sequence.source,
        frames=tuple(frames[number].name for number in cached),
        detector=detector.name,
        boxes=tuple(_rounded(box) for box in recorded),
        confidences=tuple(round(box.confidence, 4) if box else None for box in recorded),
        repeated=max(0, settings.frames - len(frames)),
        flags=(*read.flags, *repeat_flags(len(frames), settings), *_flags(faces, with_face, settings)),
        fold=sequence.fold,
        split=sequence.split,
    )
    plain = np.stack([crops[number] for number in cached])
    return FaceClip(
        record=record, plain=plain, clahe=apply_clahe(plain, settings.clahe_clip_limit, settings.clahe_tiles)
    )


def chosen_frames(windows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The frames that some window contains, in ascending order."""
    return tuple(sorted({number for window in windows for number in window}))


def among_chosen(windows: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The same windows, whose numbers count `chosen_frames` only."""
    index_of = {number: index for index, number in enumerate(chosen_frames(windows))}
    return tuple(tuple(index_of[number] for number in window) for window in windows)


def repeat_flags(frames: int, settings: ClipSettings) -> tuple[str, ...]:
    """A flag for a clip with so few frames that the last one is repeated; none for a clip with enough."""
    if frames >= settings.frames:
        return ()
    return (f"only {frames} of {settings.frames} frames; the last one is repeated",)


def find_faces(image: Image, detector: FaceDetector) -> tuple[FaceBox, ...]:
    """The faces in an image (uint8, H x W, or H x W x 3 BGR), each box clipped to the image."""
    # Clipped, so that areas compare visible faces: res10 finds large ones almost wholly outside the image.
    boxes = detector.detect(image)
    parts = (box.within(image_width=image.shape[1], image_height=image.shape[0]) for box in boxes)
    return tuple(part for part in parts if part is not None)


def too_few_faces(found: Sequence[FaceBox | None], settings: ClipSettings) -> bool:
    """Whether too small a share of the frames has a face, or no frame; `found` has an entry for each frame."""
    with_face = sum(box is not None for box in found)
    return with_face < max(settings.min_face_share * len(found), 1)


def crop_faces(images: Sequence[Image], found: Sequence[FaceBox | None], settings: ClipSettings) -> list[Image]:
    """One person's face in each image, cropped and resized; uint8, size x size (x 3: red, green, blue).

    Args:
        images: the clip's frames in temporal order, uint8, gray or BGR.
        found: the face in each frame; None gets the box of the nearest frame that has one.
        settings: `box` and `frame_size` are used.
    """
    boxes = _boxes(found, images, settings.box)
    return [_crop(image, box, settings.frame_size) for image, box in zip(images, boxes, strict=True)]


def apply_clahe(frames: Frames, clip_limit: float, tiles: int) -> Frames:
    """Apply CLAHE to each frame by itself; in colour, to the lightness (L of Lab).

    Args:
        frames: uint8, frames x size x size (x 3: red, green, blue); the result has the same shape and type.
        clip_limit: OpenCV's clip limit.
        tiles: tiles along each side of a frame.
    """
    clahe = cv2.createCLAHE(clip_limit, (tiles, tiles))
    if frames.ndim == 3:
        return np.stack([clahe.apply(frame).astype(np.uint8, copy=False) for frame in frames])
    result = np.empty_like(frames)
    for index, frame in enumerate(frames):
        lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB)
        lab[..., 0] = clahe.apply(lab[..., 0])
        result[index] = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return result


def _read_windows(
    sequence: FrameSequence, settings: ClipSettings, *, colour: bool
) -> tuple[ReadFrames, tuple[tuple[int, ...], ...]]:
    """The frames of a sequence that its windows contain, and the windows, as indices into these frames."""
    if settings.frame_sampling is FrameSampling.LAST:
        # It needs one pass, and the frames of an image sequence before the last ones are not even opened.
        read = read_last_frames(sequence, settings.frames, colour=colour)
        return read, settings.sample(len(read.frames)) if read.frames else ()
    windows: tuple[tuple[int, ...], ...] = ()

    def choose(readable: int) -> tuple[int, ...]:
        nonlocal windows
        windows = settings.sample(readable)
        return chosen_frames(windows)

    read = read_chosen_frames(sequence, choose, colour=colour)
    return read, among_chosen(windows)


def _too_few_reason(with_face: int, frames: int, settings: ClipSettings) -> str:
    which = "last" if settings.frame_sampling is FrameSampling.LAST else "chosen"
    if with_face == 0:
        return f"no face in its {which} {frames} frames"
    return (
        f"a face in only {with_face} of its {which} {frames} frames, a smaller share than "
        f"{settings.min_face_share:g} (min_face_share)"
    )


def _boxes(found: Sequence[FaceBox | None], images: Sequence[Image], choice: BoxChoice) -> list[FaceBox]:
    boxes = fill_gaps(found)
    if boxes is None:
        return [
            FaceBox(x=0.0, y=0.0, width=image.shape[1], height=image.shape[0], confidence=0.0)
            for image in images
        ]
    if choice is BoxChoice.MEDIAN:
        # Only of frames with a face: filled gaps would count one box several times.
        return [median_box([box for box in found if box is not None])] * len(boxes)
    return boxes


def _crop(image: Image, box: FaceBox, size: int) -> Image:
    rows, columns = box.clipped(image_width=image.shape[1], image_height=image.shape[0])
    face = image[rows, columns]
    if face.size == 0:
        # The box comes from a neighbouring frame of another size and lies outside this one.
        face = image
    shrinks = min(face.shape[:2]) > size
    resized = cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if resized.ndim == 3:
        resized = cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)
    return resized.astype(np.uint8, copy=False)


def _flags(faces: list[tuple[FaceBox, ...]], with_face: int, settings: ClipSettings) -> Iterator[str]:
    frames = len(faces)
    if with_face == 0:
        yield f"no face in any of {frames} frames: whole pictures are kept"
    elif with_face < frames:
        few = " (too few)" if with_face < settings.min_face_share * frames else ""
        yield f"no face in {frames - with_face} of {frames} frames{few}"
    if several := sum(len(found) > 1 for found in faces):
        yield f"several faces in {several} of {frames} frames"


def _rounded(box: FaceBox | None) -> tuple[float, float, float, float] | None:
    if box is None:
        return None
    return round(box.x, 1), round(box.y, 1), round(box.width, 1), round(box.height, 1)
