"""Face detection: one interface, and the detectors behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.detector_weights import RES10_LAYERS, RES10_WEIGHTS, YUNET, find_weights
from services.errors import InvalidInput

Image = npt.NDArray[np.uint8]

_COARSE_SIDE, _FINE_SIDE = 128, 320
"""Pixels on the longer side of the image that YuNet searches: coarse first, fine if it finds no large face."""

_MIN_LARGE_SHARE = 0.2
"""Minimum share of the image's longer side that the longer side of a large face covers."""

_WINDOW_SIZE = (288, 352)
"""Width and height in pixels of the window in which YuNet locates a face."""

_MAX_WINDOW_FACE = (240, 300)
"""Maximum width and height in pixels of a face in that window; a larger face is scaled down."""

_GRID_PIXELS = 32
"""Pixels between the cells of YuNet's coarsest feature map."""

_MIN_SAME_FACE_IOU = 0.3
"""Intersection over union above which the boxes of search and window are the same face."""


@dataclass(frozen=True, kw_only=True)
class FaceBox:
    """A face's upright box in pixels of the image it was found in; it may extend beyond the image."""

    x: float
    """Left edge."""

    y: float
    """Top edge."""

    width: float
    height: float
    confidence: float
    """The detector's own score in [0, 1]; scores of different detectors do not compare."""

    @property
    def area(self) -> float:
        """In square pixels, including the part outside the image."""
        return self.width * self.height

    def clipped(self, *, image_width: int, image_height: int) -> tuple[slice, slice]:
        """The rows and columns of the box inside an image of this size, as slices of its array.

        The edges are rounded to whole pixels. If the box is outside the image, a slice is empty.
        """
        return _clip(self.y, self.height, image_height), _clip(self.x, self.width, image_width)

    def within(self, *, image_width: int, image_height: int) -> FaceBox | None:
        """The part of the box inside an image of this size; None if it has no pixels."""
        rows, columns = self.clipped(image_width=image_width, image_height=image_height)
        if rows.start == rows.stop or columns.start == columns.stop:
            return None
        left, top = max(self.x, 0.0), max(self.y, 0.0)
        return replace(
            self,
            x=left,
            y=top,
            width=min(self.x + self.width, image_width) - left,
            height=min(self.y + self.height, image_height) - top,
        )


class FaceDetector(Protocol):
    """Finds faces. Only one thread may use an instance at a time."""

    @property
    def name(self) -> str:
        """The name by which `make_detector` knows it."""
        ...

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file, 64 hexadecimal digits in lower case."""
        ...

    def detect(self, image: Image) -> tuple[FaceBox, ...]:
        """The faces in a uint8 image, gray (H x W) or BGR (H x W x 3), largest first.

        Raises:
            InvalidInput: another shape or type, or an image without pixels.
        """
        ...


def make_detector(name: str) -> FaceDetector:
    """Make the detector of that name with its default settings.

    Raises:
        InvalidInput: unknown name.
        NotFound: its weights are not installed.
    """
    try:
        make = DETECTORS[name]
    except KeyError:
        known = ", ".join(sorted(DETECTORS))
        raise InvalidInput(
            f"detector is {name!r}, which is not known; use one of: {known}.", field="detector"
        ) from None
    return make()


class YuNet:
    """OpenCV's YuNet in two steps: search a reduced image, then locate each face in a window around it.

    The network finds faces of about 10 to 300 pixels, and its time grows with the number of pixels. A reduced
    image is enough to find a large face; the window gives the exact edges, at full resolution for faces of up
    to 240 x 300 pixels.
    """

    name = "yunet"
    weights_sha256 = YUNET.sha256

    def __init__(self, *, score_threshold: float = 0.6) -> None:
        """`score_threshold` is the minimum confidence of a face, above 0 and up to 1.

        Raises:
            InvalidInput: the threshold is out of range, or the weights differ from the pinned ones.
            NotFound: the weights are not installed.
        """
        _check_threshold(score_threshold)
        weights = str(find_weights(YUNET))
        # One network for each input size: after a change of size OpenCV can return infinite boxes.
        self._nets = {
            size: cv2.FaceDetectorYN.create(weights, "", size, score_threshold)
            for size in ((_COARSE_SIDE, _COARSE_SIDE), (_FINE_SIDE, _FINE_SIDE), _WINDOW_SIZE)
        }

    def detect(self, image: Image) -> tuple[FaceBox, ...]:
        """See `FaceDetector.detect`."""
        _check(image)
        longest = max(image.shape[:2])
        faces = self._search(image, _COARSE_SIDE)
        large = _MIN_LARGE_SHARE * longest
        if longest > _COARSE_SIDE and not any(max(face.width, face.height) >= large for face in faces):
            faces = self._search(image, _FINE_SIDE)
        return _largest_first(faces)

    def _search(self, image: Image, side: int) -> set[FaceBox]:
        height, width = image.shape[:2]
        shrink = min(1.0, side / max(height, width))
        found = self._find(image, shrink, (side, side), left=0, top=0)
        closer = (face if shrink == 1.0 else self._look_closer(image, face, shrink) for face in found)
        return {face for face in closer if face is not None}

    def _look_closer(self, image: Image, face: FaceBox, shrink: float) -> FaceBox | None:
        """The same face, located in a window around it; None if it is not found there."""
        scale = min(1.0, _MAX_WINDOW_FACE[0] / face.width, _MAX_WINDOW_FACE[1] / face.height)
        if scale <= shrink:
            return face
        # At full size the window starts on the network's own grid, so that the network sees the face as in the
        # whole image.
        left, columns = _window(face.x + face.width / 2, _WINDOW_SIZE[0] / scale, image.shape[1])
        top, rows = _window(face.y + face.height / 2, _WINDOW_SIZE[1] / scale, image.shape[0])
        part = image[top : top + rows, left : left + columns]
        found = self._find(part, scale, _WINDOW_SIZE, left=left, top=top)
        best = max(found, key=lambda other: intersection_over_union(face, other), default=None)
        return best if best is not None and intersection_over_union(face, best) > _MIN_SAME_FACE_IOU else None

    def _find(self, image: Image, scale: float, room: tuple[int, int], *, left: int, top: int) -> list[FaceBox]:
        """The faces in a part of an image, with boxes in pixels of the whole image.

        The part starts at `left` and `top`; it is scaled and padded to `room` (width, height).
        """
        height, width = image.shape[:2]
        size = (min(max(1, round(width * scale)), room[0]), min(max(1, round(height * scale)), room[1]))
        small: Any = image
        if size != (width, height):
            # INTER_AREA: the other methods alias at strong reduction
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        padded = np.zeros((room[1], room[0], 3), np.uint8)
        padded[: size[1], : size[0]] = _as_bgr(small)
        # one factor per axis: each side was rounded on its own
        across, down = width / size[0], height / size[1]
        _, rows = self._nets[room].detect(padded)
        # typed as an array, but None if there is no face
        found: Any = rows
        return [
            FaceBox(
                x=left + float(row[0]) * across,
                y=top + float(row[1]) * down,
                width=float(row[2]) * across,
                height=float(row[3]) * down,
                confidence=min(1.0, float(row[-1])),
            )
            for row in (() if found is None else found)
        ]


class Res10:
    """The SSD with a ResNet-10 that OpenCV distributes as its deep-learning face detector; the paper used it.

    The image is squeezed to 300 x 300 pixels, whatever its shape; a box has whole pixels and no margin (paper,
    section 4.1, and the usual way to call this network).
    """

    name = "res10"
    weights_sha256 = RES10_WEIGHTS.sha256

    def __init__(self, *, score_threshold: float = 0.5) -> None:
        """`score_threshold` is the minimum confidence of a face, above 0 and up to 1.

        Raises:
            InvalidInput: the threshold is out of range, or the weights differ from the pinned ones.
            NotFound: the weights are not installed.
        """
        _check_threshold(score_threshold)
        self._threshold = score_threshold
        self._net = cv2.dnn.readNetFromCaffe(str(find_weights(RES10_LAYERS)), str(find_weights(RES10_WEIGHTS)))

    def detect(self, image: Image) -> tuple[FaceBox, ...]:
        """See `FaceDetector.detect`."""
        _check(image)
        height, width = image.shape[:2]
        squeezed = _as_bgr(cv2.resize(image, (300, 300), interpolation=cv2.INTER_LINEAR))
        # the mean of its training images, in the order blue, green, red
        self._net.setInput(cv2.dnn.blobFromImage(squeezed, 1.0, (300, 300), (104.0, 177.0, 123.0)))
        found: Any = self._net.forward()
        boxes = []
        for _, _, confidence, *edges in found[0, 0].tolist():
            if confidence < self._threshold:
                continue
            left, top, right, bottom = (
                int(edge * side) for edge, side in zip(edges, (width, height) * 2, strict=True)
            )
            if right > left and bottom > top:
                boxes.append(
                    FaceBox(
                        x=float(left),
                        y=float(top),
                        width=float(right - left),
                        height=float(bottom - top),
                        confidence=min(1.0, confidence),
                    )
                )
        return _largest_first(boxes)


DETECTORS: Mapping[str, Callable[[], FaceDetector]] = {YuNet.name: YuNet, Res10.name: Res10}
"""The detectors by name."""


def _clip(start: float, length: float, limit: int) -> slice:
    first = min(max(math.floor(start + 0.5), 0), limit)
    return slice(first, min(max(math.floor(start + length + 0.5), first), limit))


def intersection_over_union(one: FaceBox, other: FaceBox) -> float:
    """The share of the area covered by either box that both cover, in [0, 1]."""
    across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    both = max(across, 0.0) * max(down, 0.0)
    either = one.area + other.area - both
    return both / either if either > 0.0 else 0.0


def _largest_first(boxes: Iterable[FaceBox]) -> tuple[FaceBox, ...]:
    return tuple(sorted(boxes, key=lambda box: (-box.area, -box.confidence, box.x, box.y)))


def _window(middle: float, length: float, limit: int) -> tuple[int, int]:
    """Start (on the grid) and length of a window around `middle` on an axis of `limit` pixels."""
    last = max(0, (-(-limit // _GRID_PIXELS) * _GRID_PIXELS - round(length)) // _GRID_PIXELS)
    return min(max(round((middle - length / 2) / _GRID_PIXELS), 0), last) * _GRID_PIXELS, round(length)


def _as_bgr(image: Any) -> Any:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image


def _check_threshold(score_threshold: float) -> None:
    if not 0.0 < score_threshold <= 1.0:
        raise InvalidInput(
            f"score_threshold is {score_threshold}; give a number above 0 and up to 1.",
            field="score_threshold",
        )


def _check(image: Image) -> None:
    if image.dtype != np.uint8:
        raise InvalidInput(f"image has dtype {image.dtype}; give uint8.", field="image")
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise InvalidInput(
            f"image has shape {image.shape}; give H x W (gray) or H x W x 3 (BGR).", field="image"
        )
    if image.size == 0:
        raise InvalidInput(f"image has shape {image.shape}, without pixels; give an image.", field="image")
