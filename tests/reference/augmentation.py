"""Flip, rotation and linear contrast of one frame (paper section 3.2), written as formulas.

Nothing here is shared with `worker/`. Values are float64 and not rounded, except where OpenCV does it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Exact = NDArray[np.float64]


def contrast(values: Image, multiplier: float) -> Exact:
    """127 + a (v - 127), clipped to [0, 255]."""
    exact: Exact = np.clip(127 + multiplier * (values.astype(np.float64) - 127), 0, 255)
    return exact


def flip(image: Image) -> Image:
    """Column c goes where column size - 1 - c was."""
    width = image.shape[1]
    return np.stack([image[:, width - 1 - column] for column in range(width)], axis=1)


def rotate(image: Image, degrees: float) -> Exact:
    """A gray image turned counter-clockwise about its centre, black around it: bilinear, pixel by pixel."""
    height, width = image.shape
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            # Turned back, a pixel of the result lies here in the image; y points down.
            dx, dy = x - centre_x, y - centre_y
            result[y, x] = _bilinear(image, centre_y + sin * dx + cos * dy, centre_x + cos * dx - sin * dy)
    return result


def rotate_by_opencv(image: Image, degrees: float) -> Image:
    """The same by OpenCV, which places a sample to 1/32 of a pixel."""
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=0)
    return turned.astype(np.uint8)


def _bilinear(image: Image, y: float, x: float) -> float:
    top, left = int(np.floor(y)), int(np.floor(x))
    down, right = y - top, x - left
    return (
        (1 - down) * (1 - right) * _pixel(image, top, left)
        + (1 - down) * right * _pixel(image, top, left + 1)
        + down * (1 - right) * _pixel(image, top + 1, left)
        + down * right * _pixel(image, top + 1, left + 1)
    )


def _pixel(image: Image, y: int, x: int) -> float:
    inside = 0 <= y < image.shape[0] and 0 <= x < image.shape[1]
    return float(image[y, x]) if inside else 0.0
