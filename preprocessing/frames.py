"""The frames of a sequence as images."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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


class Frame(NamedTuple):
    """One frame that was read."""

    name: str
    """Of its file."""

    image: Image
    """uint8, height x width, or height x width x 3 (BGR)."""


@dataclass(frozen=True, kw_only=True)
class LastFrames:
    """The end of a sequence."""

    frames: tuple[Frame, ...]
    """In temporal order."""

    flags: tuple[str, ...]
    """What could not be read, in words, last first."""


def read_last_frames(sequence: Sequence, count: int, *, colour: bool) -> LastFrames:
    """The last `count` frames that can be read, fewer where there are fewer, none where none can be.

    Args:
        count: at least 1; no more frames than these are held at a time.
        colour: BGR images; otherwise colours are decoded to gray.

    Raises `OSError` where the disk fails, see `pass_over`.
    """
    frames: list[Frame] = []
    flags: list[str] = []
    for path in reversed(sequence.frames):
        image = _read_image(path, colour=colour)
        if image is None:
            flags.append(f"unreadable frame {path.name}")
            continue
        frames.insert(0, Frame(path.name, image))
        if len(frames) == count:
            break
    return LastFrames(frames=tuple(frames), flags=tuple(flags))


def pass_over(path: Path, error: OSError) -> None:
    """Return where a file cannot be read by its own fault: it is gone, a folder, forbidden.

    Raises `error` where the disk or the network failed: that is no property of the dataset, and a cache made
    in spite of it would lack frames that are there.
    """
    if error.errno not in _THE_FILES_OWN_FAULT:
        if error.filename is None:  # it failed while it was read, not when it was opened
            error.filename = str(path)
        raise error


def _read_image(path: Path, *, colour: bool) -> Image | None:
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        pass_over(path, error)
        return None
    if content.size == 0:
        return None
    try:
        image: Any = cv2.imdecode(content, cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # a header that asks for more pixels than OpenCV allows
        return None
    return None if image is None else image.astype(np.uint8, copy=False)
