"""One sequence becomes one face clip: last frames, largest face, square crops, CLAHE beside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from preprocessing.datasets.reader import Sequence
from preprocessing.faces import FaceBox, FaceDetector, Image
from preprocessing.frames import read_last_frames
from services.clip_cache import CacheRecord, Frames


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How clips are made; the defaults are the paper's (sections 3.3 and 4.1). Part of the fingerprint."""

    frames: int = 10
    """Frames of a clip: the last ones of its sequence."""

    frame_size: int = 112
    """Pixels on a side of a cropped face."""

    detector: str = "yunet"
    clahe_clip_limit: float = 2.0
    clahe_tiles: int = 8

    def as_dict(self) -> dict[str, Any]:
        """For the fingerprint and the manifest."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class FaceClip:
    """A finished clip; both arrays uint8, frames x size x size, or x 3 (RGB) where it is in colour."""

    record: CacheRecord
    plain: Frames
    clahe: Frames


@dataclass(frozen=True, kw_only=True)
class DroppedClip:
    """A sequence no clip can be made of."""

    clip_id: str
    reason: str


def make_clip(
    sequence: Sequence, *, settings: ClipSettings, detector: FaceDetector, colour: bool = False
) -> FaceClip | DroppedClip:
    """Crop the face of the last readable frames of a sequence.

    A frame that cannot be read is left out; a frame without a face takes the box of the nearest frame that
    has one; where there are too few frames the last is repeated (paper, section 4.1). Each of these is a
    flag of the clip. A sequence without a readable frame, or without a face, is dropped.

    Args:
        colour: crops keep their colours (RGB); otherwise all frames are decoded to gray (paper, section 4.1).
    """
    read = read_last_frames(sequence, settings.frames, colour=colour)
    images, flags = read.frames, list(read.flags)
    if not images:
        return DroppedClip(clip_id=sequence.clip_id, reason="none of its frames can be read as an image")

    found = [_largest(detector, image) for _, image in images]
    boxes = _fill_gaps(found)
    if boxes is None:
        return DroppedClip(clip_id=sequence.clip_id, reason=f"no face in its last {len(images)} frames")
    if without := found.count(None):
        flags.append(f"no face in {without} of {len(found)} frames")

    crops = [_crop(image, box, settings.frame_size) for (_, image), box in zip(images, boxes, strict=True)]
    repeated = settings.frames - len(crops)
    names = [name for name, _ in images]
    crops += [crops[-1]] * repeated
    clahe = cv2.createCLAHE(settings.clahe_clip_limit, (settings.clahe_tiles, settings.clahe_tiles))
    record = CacheRecord(
        clip_id=sequence.clip_id,
        subject=sequence.subject,
        label=sequence.label,
        source=sequence.source,
        frames=tuple(names + [names[-1]] * repeated),
        detector=detector.name,
        boxes=tuple(_rounded(box) for box in found + [found[-1]] * repeated),
        confidences=tuple(round(box.confidence, 4) if box else None for box in found + [found[-1]] * repeated),
        repeated=repeated,
        flags=tuple(flags),
    )
    return FaceClip(
        record=record,
        plain=np.stack([_as_stored(crop) for crop in crops]),
        clahe=np.stack([_as_stored(_equalised(crop, clahe)) for crop in crops]),
    )


def _largest(detector: FaceDetector, image: Image) -> FaceBox | None:
    for box in detector.detect(image):
        rows, columns = box.clipped(image_width=image.shape[1], image_height=image.shape[0])
        if image[rows, columns].size:
            return box
    return None


def _fill_gaps(found: list[FaceBox | None]) -> list[FaceBox] | None:
    there = [i for i, box in enumerate(found) if box is not None]
    if not there:
        return None
    nearest = (min(there, key=lambda other: (abs(other - i), other)) for i in range(len(found)))
    return [box for i in nearest if (box := found[i]) is not None]


def _crop(image: Image, box: FaceBox, size: int) -> Image:
    rows, columns = box.clipped(image_width=image.shape[1], image_height=image.shape[0])
    face = image[rows, columns]
    if face.size == 0:
        # The box comes from a neighbouring frame of another size and lies outside this one.
        face = image
    shrinks = min(face.shape[:2]) > size
    resized = cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized.astype(np.uint8, copy=False)


def _equalised(crop: Image, clahe: cv2.CLAHE) -> Image:
    """Of colours only the lightness is changed (L of Lab)."""
    if crop.ndim == 2:
        return clahe.apply(crop).astype(np.uint8)
    lab = cv2.cvtColor(crop, cv2.COLOR_BGR2LAB)
    lab[..., 0] = clahe.apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2BGR).astype(np.uint8)


def _as_stored(crop: Image) -> Image:
    """RGB, as everything but OpenCV has it."""
    return crop if crop.ndim == 2 else crop[..., ::-1]


def _rounded(box: FaceBox | None) -> tuple[float, float, float, float] | None:
    if box is None:
        return None
    return round(box.x, 1), round(box.y, 1), round(box.width, 1), round(box.height, 1)
