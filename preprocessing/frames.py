"""The last readable frames of a sequence, as arrays."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from preprocessing.datasets.reader import Sequence
from preprocessing.faces import Image

_THE_FILES_OWN_FAULT = {
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.EPERM,
}
"""Errors that trying again does not mend; any other says that the disk or the network failed."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A decoded frame."""

    name: str
    """Its file's name."""

    image: Image
    """uint8, H x W (gray) or H x W x 3 (BGR)."""


def read_last_frames(sequence: Sequence, count: int, *, colour: bool) -> tuple[list[Frame], list[str]]:
    """The last `count` readable frames of a sequence in temporal order, and the names of those passed over.

    All are decoded to gray, or all to colour. Raises `OSError` where the disk fails, as `read_bytes` does.
    """
    frames: list[Frame] = []
    unreadable: list[str] = []
    for path in reversed(sequence.frames):
        content = read_bytes(path)
        image = None if content is None else _decode(content, colour=colour)
        if image is None:
            unreadable.append(path.name)
            continue
        frames.insert(0, Frame(name=path.name, image=image))
        if len(frames) == count:
            break
    return frames, unreadable


def read_bytes(path: Path) -> bytes | None:
    """A file's content, or None where the file itself cannot be read: it is gone, a folder, forbidden.

    Raises `OSError` where the disk or the network fails: that is no property of the dataset, and a cache made
    in spite of it would lack frames that are there.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in _THE_FILES_OWN_FAULT:
            return None
        if error.filename is None:  # failed while it was read, not when it was opened
            error.filename = str(path)
        raise


def _decode(content: bytes, *, colour: bool) -> Image | None:
    if not content:
        return None
    try:
        image: Any = cv2.imdecode(
            np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE
        )
    except cv2.error:  # a header that asks for more pixels than OpenCV allows
        return None
    return None if image is None else image.astype(np.uint8, copy=False)
