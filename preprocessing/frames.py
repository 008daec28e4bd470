"""The frames of a sequence as images, from image files and from videos."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from preprocessing.datasets.reader import Sequence, Span, as_text
from preprocessing.faces import Image

# OpenCV's copy of FFmpeg writes about broken files into the terminal; they are told of as flags instead.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_SAME_MOMENT = 1e-3
"""Seconds: playing times are rounded to milliseconds in some containers."""

_LAST_MOMENT = 0.1
"""Seconds: a video's last frame begins somewhat before its end."""

_MOST = 0.9
"""The share of the frames that a video's header promises which must be there."""


class Frame(NamedTuple):
    """One frame that was read."""

    name: str
    """Of its file; in a video, the file's with the number of the frame, counted from 0."""

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
    """
    if sequence.video is not None:
        return _of_video(sequence.video, sequence.span, count, colour=colour)
    frames: list[Frame] = []
    flags: list[str] = []
    for path in reversed(sequence.frames):
        image = _read_image(path, colour=colour)
        if image is None:
            flags.append(f"unreadable frame {as_text(path.name)}")
            continue
        frames.insert(0, Frame(as_text(path.name), image))
        if len(frames) == count:
            break
    return LastFrames(frames=tuple(frames), flags=tuple(flags))


def _read_image(path: Path, *, colour: bool) -> Image | None:
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError:
        return None
    if content.size == 0:
        return None
    try:
        image: Any = cv2.imdecode(content, cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # a header that asks for more pixels than OpenCV allows
        return None
    return None if image is None else image.astype(np.uint8, copy=False)


def _of_video(path: Path, span: Span, count: int, *, colour: bool) -> LastFrames:
    """Every frame from the file's first is decoded: with some codecs seeking lands on another."""
    start, end, slack = span.start or 0.0, math.inf if span.end is None else span.end, 0.0
    if span.seconds:
        slack = _SAME_MOMENT
    last: deque[Frame] = deque(maxlen=count)
    number, place = 0, 0.0
    try:
        with _opened(path) as capture:
            while place <= end + slack and capture.grab():
                place = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 if span.seconds else float(number)
                if start - slack <= place <= end + slack:
                    there, image = capture.retrieve()
                    if there:
                        frame = image if colour else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
                        last.append(Frame(f"{as_text(path.name)}#{number}", np.asarray(frame, np.uint8)))
                number += 1
            promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    except OSError as error:
        return LastFrames(frames=(), flags=(f"unreadable video {as_text(path.name)}: {error.strerror}",))
    # what a header says of a file's length is an estimate in some containers
    whole = (
        number >= _MOST * promised if span.end is None else place >= end - (_LAST_MOMENT if span.seconds else 0)
    )
    flags = () if whole else (f"{as_text(path.name)} ends after {number} frames, before it should",)
    return LastFrames(frames=tuple(last), flags=flags)


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    # By descriptor: OpenCV takes text only, which not every file name is, and reads some as patterns.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        capture = cv2.VideoCapture(f"/dev/fd/{descriptor}", cv2.CAP_FFMPEG)
        try:
            yield capture
        finally:
            capture.release()
    finally:
        os.close(descriptor)
