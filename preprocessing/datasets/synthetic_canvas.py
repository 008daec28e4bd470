"""What the faces of the synthetic set are drawn on, and the outlines they are drawn with."""

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
"""Points as right and down from the middle of the face in half face widths, float32, n x 2."""

Tint = tuple[float, float, float]
"""What a gray tone is multiplied by for blue, green and red; a tint leaves the brightness as it is."""

_TINT_UNIT = 100
"""A tint of 1 in the canvas' map of tints: a byte holds tints up to 2.55."""

_SUBPIXEL_BITS = 4
"""Bits of sub-pixel precision of OpenCV's drawing calls: motion of less than a pixel must show."""


class Canvas:
    """A gray picture that is drawn on in the face's own coordinates: half face widths from its middle.

    Tones go from 0 (black) to 255; those beyond are clipped.
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
        """`half_width` and `centre` (x, y) of the face at rest are in pixels of `backdrop`.

        `head`, five values of about -1 to 1: how far the head is right, down, tilted, near, and turned.
        `tints` are the colours of the parts of the picture by name, `backdrop` among them; without any the
        picture stays gray.
        """
        right, down, tilt, near, turn = head.tolist()
        angle = math.radians(1.5 * tilt)
        self.image = backdrop.copy()
        self.soft = np.full_like(backdrop, 128)
        """Broad shades, darker below 128 and lighter above it."""

        self.fine = np.full_like(backdrop, 128)
        """Folds of the skin, likewise."""

        self._tints = dict(tints or {})
        self._tint_map = None if tints is None else np.empty((*backdrop.shape, 3), np.uint8)
        if self._tint_map is not None:
            self._tint_map[:] = self._tint_bytes("backdrop")

        self.unit = half_width * (1 + 0.01 * near)
        """Half a face width in pixels."""

        self.axes = self.unit * np.array(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        )
        """The face's right and down in pixels, float64, 2 x 2: a row each."""

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
        """Fills an outline on `on`, or else on the picture.

        `depth`: how far in front it is, and so how far it goes when the head turns. `tint`: what it is made of;
        None leaves the colour of what it is drawn on.
        """
        target = self.image if on is None else on
        pixels = self._pixels(points, depth)
        cv2.fillPoly(target, [pixels], _tone(tone), cv2.LINE_AA, _SUBPIXEL_BITS)
        if tint is not None and self._tint_map is not None:
            cv2.fillPoly(self._tint_map, [pixels], self._tint_bytes(tint), cv2.LINE_AA, _SUBPIXEL_BITS)

    def line(
        self, points: Points, tone: float, width: float, *, on: Gray | None = None, depth: float = 1.0
    ) -> None:
        """Draws an open line, `width` in half face widths; the rest as in `fill`."""
        target = self.image if on is None else on
        thickness = max(1, round(width * self.unit))
        pixels = self._pixels(points, depth)
        cv2.polylines(target, [pixels], False, _tone(tone), thickness, cv2.LINE_AA, _SUBPIXEL_BITS)

    def apply_shades(self) -> None:
        """Lays what was drawn on `soft` and `fine` over the picture."""
        for layer, blur in ((self.soft, 0.075), (self.fine, 0.022)):
            cv2.multiply(
                self.image, cv2.GaussianBlur(layer, (0, 0), blur * self.unit), self.image, scale=1 / 128
            )

    def coloured(self, gray: Gray) -> Picture:
        """A gray picture of this canvas' size in the colours of its parts, BGR; gray where it has none."""
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
    """The points of these coordinates, n each; on the left with `side` -1."""
    return np.stack([np.asarray(xs, np.float32) * np.float32(side), np.asarray(ys, np.float32)], axis=1)


def mirrored(xs: list[float], ys: list[float]) -> Points:
    """A closed outline from its right half, which starts and ends at the middle or near to it."""
    right = points_at(xs, ys)
    # a point on the middle line is its own mirror image
    left = right[right[:, 0] != 0][::-1] * np.array([-1.0, 1.0], np.float32)
    return np.concatenate([right, left])


def oval(x: float, y: float, half_width: float, half_height: float) -> Points:
    """The closed outline of an ellipse around (x, y)."""
    return np.array([x, y], np.float32) + _CIRCLE * np.array([half_width, half_height], np.float32)


def curve(points: Points, *, closed: bool = True) -> Points:
    """A smooth line through the points, with five points for each stretch between two of them."""
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
"""Catmull and Rom's spline: how much each of four neighbours counts at five places between the middle two."""
