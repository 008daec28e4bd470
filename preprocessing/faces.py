"""Where the faces in an image are: one interface, and the detectors behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.detector_weights import RES10_LAYERS, RES10_WEIGHTS, YUNET, find_weights
from services.errors import InvalidInput

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class FaceBox:
    """A face's upright box in pixels of the image it was found in; it may reach over the image's borders."""

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
        """In square pixels, with the part outside the image."""
        return self.width * self.height

    def clipped(self, *, image_width: int, image_height: int) -> tuple[slice, slice]:
        """The rows and columns of the box that lie inside an image of this size, as slices of its array.

        The edges are rounded to whole pixels. Where box and image do not meet, a slice is empty.
        """
        return _clip(self.y, self.height, image_height), _clip(self.x, self.width, image_width)


class FaceDetector(Protocol):
    """Finds faces. An instance is for one thread at a time."""

    @property
    def name(self) -> str:
        """The name that `make_detector` knows it by."""
        ...

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file, 64 hexadecimal digits in lower case."""
        ...

    def detect(self, image: Image) -> tuple[FaceBox, ...]:
        """The faces in a uint8 image, gray (H x W) or BGR (H x W x 3), largest first.

        Raises `InvalidInput` for another shape or type, or an image without pixels.
        """
        ...


def make_detector(name: str) -> FaceDetector:
    """The detector of that name with its default settings.

    Raises `InvalidInput` for an unknown name and `NotFound` where its weights are not installed.
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
    """OpenCV's YuNet, for faces of about 10 to 300 pixels."""

    name = "yunet"
    weights_sha256 = YUNET.sha256

    def __init__(self, *, score_threshold: float = 0.6, longest_side: int = 320) -> None:
        """`score_threshold` is the least confidence of a face.

        A frame with a side longer than `longest_side` pixels is scaled down before it is searched.

        Raises `InvalidInput` for settings out of range or weights that differ from the pinned ones,
        and `NotFound` where the weights are not installed.
        """
        _check_threshold(score_threshold)
        if longest_side < 32:
            raise InvalidInput(f"longest_side is {longest_side}; give 32 pixels or more.", field="longest_side")
        self._longest_side = longest_side
        self._net = cv2.FaceDetectorYN.create(
            str(find_weights(YUNET)), "", (longest_side, longest_side), score_threshold
        )

    def detect(self, image: Image) -> tuple[FaceBox, ...]:
        """See `FaceDetector.detect`."""
        _check(image)
        height, width = image.shape[:2]
        shrink = min(1.0, self._longest_side / max(height, width))
        # typed loosely: OpenCV's arrays are
        small: Any = image
        if shrink < 1.0:
            # INTER_AREA: the others alias when they scale down this far
            size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        bgr = _as_bgr(small)
        # one input size for every image: after a change of size OpenCV can answer with infinite boxes
        padded = np.zeros((self._longest_side, self._longest_side, 3), np.uint8)
        padded[: bgr.shape[0], : bgr.shape[1]] = bgr
        _, rows = self._net.detect(padded)
        # typed as an array, but None where there is no face
        found: Any = rows
        if found is None:
            return ()
        # one factor per axis: each side was rounded on its own
        across, down = width / bgr.shape[1], height / bgr.shape[0]
        boxes = (
            FaceBox(
                x=float(row[0]) * across,
                y=float(row[1]) * down,
                width=float(row[2]) * across,
                height=float(row[3]) * down,
                confidence=min(1.0, float(row[-1])),
            )
            for row in found
        )
        return _largest_first(boxes)


class Res10:
    """The SSD with a ResNet-10 that OpenCV carries as its deep-learning face detector: the paper's.

    The picture is squeezed to 300 x 300, whatever its shape; a box has no margin and whole pixels (paper,
    section 4.1, and the usual way to call this network).
    """

    name = "res10"
    weights_sha256 = RES10_WEIGHTS.sha256

    def __init__(self, *, score_threshold: float = 0.5) -> None:
        """`score_threshold` is the least confidence of a face.

        Raises `InvalidInput` for a threshold out of range or weights that differ from the pinned ones,
        and `NotFound` where the weights are not installed.
        """
        _check_threshold(score_threshold)
        self._threshold = score_threshold
        self._net = cv2.dnn.readNetFromCaffe(str(find_weights(RES10_LAYERS)), str(find_weights(RES10_WEIGHTS)))

    def detect(self, image: Image) -> tuple[FaceBox, ...]:
        """See `FaceDetector.detect`."""
        _check(image)
        height, width = image.shape[:2]
        squeezed = _as_bgr(cv2.resize(image, (300, 300), interpolation=cv2.INTER_LINEAR))
        # the mean of its training pictures, in the order blue, green, red
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


def _largest_first(boxes: Iterable[FaceBox]) -> tuple[FaceBox, ...]:
    return tuple(sorted(boxes, key=lambda box: (-box.area, -box.confidence, box.x, box.y)))


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
