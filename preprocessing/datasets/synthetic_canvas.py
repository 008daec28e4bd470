"""The canvas on which synthetic faces are drawn, and the outlines that they consist of."""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

Gray = npt.NDArray[np.uint8]
"""A gray picture, uint8, height x width."""

Picture = npt.NDArray[np.uint8]
"""A gray picture, or one in colour: uint8, height x width (x 3: blue, green, red)."""

Points = npt.NDArray[np.float32]
"""Points (right, down) from the middle of the face in half face widths, float32, n x 2."""

Tint = tuple[float, float, float]
"""Factors of a gray tone for blue, green and red; a tint keeps the brightness."""

_TINT_UNIT = 100
"""Byte for a factor of 1 in the canvas's map of tints; a byte holds factors up to 2.55."""

_SUBPIXEL_BITS = 4
"""Bits of sub-pixel precision of OpenCV's drawing calls, so that motion below one pixel is visible."""


class Canvas:
    """A gray picture, drawn in the face's own coordinates: half face widths from its middle.

    Tones go from 0 (black) to 255; values beyond are clipped.
    """

    def __init__(
        self,
        backdrop: Gray,
        *,
        half_width: float,
        centre: tuple[float, float],
        head: npt.NDArray[np.float64],
        tints: Mapping[str, Tint] | None = None,
    ) -> None:
        """A canvas with a copy of `backdrop`.

        Args:
            backdrop: what is behind the head.
            half_width: of the face at rest, in pixels of `backdrop`.
            centre: x and y of the face at rest, in pixels of `backdrop`.
            head: how far the head is right, down, tilted, near and turned, each about -1 to 1; float64, 5.
            tints: colours of the parts of the picture by name, including `backdrop`; None: gray.
        """
        right, down, tilt, near, turn = head.tolist()
        angle = math.radians(1.5 * tilt)
        self.image = backdrop.copy()
        self.soft = np.full_like(backdrop, 128)
        """Broad shades: below 128 darkens, above 128 lightens."""

        self.fine = np.full_like(backdrop, 128)
        """Folds of the skin: below 128 darkens, above 128 lightens."""

        self._tints = dict(tints or {})
        self._tint_map = None if tints is None else np.empty((*backdrop.shape, 3), np.uint8)
        if self._tint_map is not None:
            self._tint_map[:] = self._tint_bytes("backdrop")

        self.unit = half_width * (1 + 0.01 * near)
        """Half a face width in pixels."""

        self.axes = self.unit * np.array(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        )
        """One unit right (first row) and one unit down (second row) in pixels, float64, 2 x 2."""

        self.origin = np.add(centre, [2 * right, 2 * down])
        """The middle of the face, x and y in pixels, float64."""

        self._turn = 0.05 * turn

    def fill(
        self,
        points: Points,
        tone: float,
        *,
        on: Gray | None = None,
        depth: float = 1.0,
        tint: str | None = None,
    ) -> None:
        """Fill an outline.

        Args:
            points: the closed outline.
            tone: gray value, 0 to 255.
            on: the layer to draw on; None: the picture.
            depth: how far in front it is, and so how far it moves when the head turns.
            tint: name of its colour; None keeps the colour below.
        """
        target = self.image if on is None else on
        pixels = self._pixels(points, depth)
        cv2.fillPoly(target, [pixels], _tone(tone), cv2.LINE_AA, _SUBPIXEL_BITS)
        if tint is not None and self._tint_map is not None:
            cv2.fillPoly(self._tint_map, [pixels], self._tint_bytes(tint), cv2.LINE_AA, _SUBPIXEL_BITS)

    def line(
        self, points: Points, tone: float, width: float, *, on: Gray | None = None, depth: float = 1.0
    ) -> None:
        """Draw an open line, `width` in half face widths; the other arguments are those of `fill`."""
        target = self.image if on is None else on
        thickness = max(1, round(width * self.unit))
        pixels = self._pixels(points, depth)
        cv2.polylines(target, [pixels], False, _tone(tone), thickness, cv2.LINE_AA, _SUBPIXEL_BITS)

    def apply_shades(self) -> None:
        """Blur `soft` and `fine`, and multiply the picture by them."""
        for layer, blur in ((self.soft, 0.075), (self.fine, 0.022)):
            cv2.multiply(
                self.image, cv2.GaussianBlur(layer, (0, 0), blur * self.unit), self.image, scale=1 / 128
            )

    def coloured(self, gray: Gray) -> Picture:
        """A gray picture of this canvas's size in the colours of its parts, BGR; unchanged without tints."""
        if self._tint_map is None:
            return gray
        three = cv2.merge([gray, gray, gray])
        return np.asarray(cv2.multiply(three, self._tint_map, scale=1 / _TINT_UNIT), np.uint8)

    def _tint_bytes(self, name: str) -> tuple[float, ...]:
        return tuple(round(_TINT_UNIT * value) for value in self._tints[name])

    def _pixels(self, points: Points, depth: float) -> npt.NDArray[np.int32]:
        shifted = np.asarray(points, np.float64) + np.array([self._turn * depth, 0.0])
        placed: npt.NDArray[np.float64] = shifted @ self.axes + self.origin
        return np.round(placed * (1 << _SUBPIXEL_BITS)).astype(np.int32)


def points_at(xs: npt.ArrayLike, ys: npt.ArrayLike, side: float = 1.0) -> Points:
    """Points with these n coordinates; `side` -1 mirrors them to the left."""
    return np.stack([np.asarray(xs, np.float32) * np.float32(side), np.asarray(ys, np.float32)], axis=1)


def mirrored(xs: list[float], ys: list[float]) -> Points:
    """A closed outline from its right half, which starts and ends at or near the middle."""
    right = points_at(xs, ys)
    # a point on the middle line is its own mirror image
    left = right[right[:, 0] != 0][::-1] * np.array([-1.0, 1.0], np.float32)
    return np.concatenate([right, left])


def oval(x: float, y: float, half_width: float, half_height: float) -> Points:
    """The closed outline of an ellipse around (x, y)."""
    return np.array([x, y], np.float32) + _CIRCLE * np.array([half_width, half_height], np.float32)


def curve(points: Points, *, closed: bool = True) -> Points:
    """A smooth line through the points, with five points for each segment."""
    ends = (points[-1:], points[:2]) if closed else (points[:1], points[-1:])
    padded = np.concatenate([ends[0], points, ends[1]])
    spans = np.stack([padded[i : len(padded) - 3 + i] for i in range(4)], axis=1)
    smooth = (_SPLINE @ spans).reshape(-1, 2)
    return smooth if closed else np.concatenate([smooth, points[-1:]])


def _tone(value: float) -> tuple[float]:
    return (min(max(value, 0.0), 255.0),)


_ANGLES = np.arange(24) * (math.pi / 12)
_CIRCLE = points_at(np.cos(_ANGLES), np.sin(_ANGLES))

_T = np.arange(5, dtype=np.float32) / 5
_SPLINE = 0.5 * np.stack(
    [-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, -(_T**2) + _T**3], axis=1
)
"""Catmull-Rom spline: weights of four neighbours at five positions between the middle two, float32, 5 x 4."""
