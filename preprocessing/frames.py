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

from preprocessing.datasets.image_files import images_of_clip
from preprocessing.datasets.reader import FrameSequence, Span, as_text
from preprocessing.datasets.tree import is_clutter, is_file, raise_if_disk_failed
from preprocessing.faces import Image

# OpenCV's copy of FFmpeg writes about broken files into the terminal; they are told of as flags instead.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_TIME_TOLERANCE_SECONDS = 1e-3
"""Seconds: playing times are rounded to milliseconds in some containers."""

_END_TOLERANCE_SECONDS = 0.1
"""Seconds: a video's last frame begins somewhat before its end."""

_DEFAULT_FRAMES_PER_SECOND = 25.0
"""Frames per second."""

_MIN_READ_SHARE = 0.9
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


def read_last_frames(sequence: FrameSequence, count: int, *, colour: bool) -> LastFrames:
    """The last `count` frames that can be read, fewer where there are fewer, none where none can be.

    Args:
        count: at least 1; no more frames than these are held at a time.
        colour: BGR images; otherwise colours are decoded to gray.

    Raises `OSError` where the disk fails, see `raise_if_disk_failed`.
    """
    if sequence.video is not None:
        return _read_video_end(sequence.video, sequence.span, count, colour=colour)
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


class VideoFrame(NamedTuple):
    """A frame of a video that is read from its start."""

    number: int
    """From 0; numbers of frames that cannot be decoded are left out."""

    seconds: float
    """When it is shown."""

    image: Image
    """uint8, height x width x 3 (BGR)."""


def read_video(path: Path) -> Iterator[VideoFrame]:
    """All frames of a video that can be decoded, in order; none where the file is no video.

    A folder is a video of the images in it, in the order of their names with numbers as numbers.

    Raises:
        OSError: the file or folder cannot be opened.
    """
    if path.is_dir():
        yield from _images_of(path)
        return
    with _open_video(path) as capture:
        number = 0
        while capture.grab():
            seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            decoded, image = capture.retrieve()
            if decoded:
                yield VideoFrame(number, seconds, np.asarray(image, np.uint8))
            number += 1


def frames_per_second(path: Path) -> float:
    """As a video's header says; 25 where it says nothing of use, and of a folder of images.

    Raises:
        OSError: the file cannot be opened.
    """
    if path.is_dir():
        return _DEFAULT_FRAMES_PER_SECOND
    with _open_video(path) as capture:
        rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if 1.0 <= rate <= 1000.0 else _DEFAULT_FRAMES_PER_SECOND


def _images_of(folder: Path) -> Iterator[VideoFrame]:
    files = sorted(path for path in folder.iterdir() if is_file(path) and not is_clutter(path))
    for number, path in enumerate(images_of_clip(files)):
        image = _read_image(path, colour=True)
        if image is not None:
            yield VideoFrame(number, number / _DEFAULT_FRAMES_PER_SECOND, image)


def _read_image(path: Path, *, colour: bool) -> Image | None:
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise_if_disk_failed(path, error)
        return None
    if content.size == 0:
        return None
    try:
        image: Any = cv2.imdecode(content, cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # a header that asks for more pixels than OpenCV allows
        return None
    return None if image is None else image.astype(np.uint8, copy=False)


def _read_video_end(path: Path, span: Span, count: int, *, colour: bool) -> LastFrames:
    """Every frame from the file's first is decoded: with some codecs seeking lands on another."""
    name = as_text(path.name)
    start, end = span.start or 0.0, math.inf if span.end is None else span.end
    tolerance = _TIME_TOLERANCE_SECONDS if span.seconds else 0.0
    last: deque[Frame] = deque(maxlen=count)
    number, position, lost = 0, 0.0, 0
    try:
        with _open_video(path) as capture:
            while position <= end + tolerance and capture.grab():
                position = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 if span.seconds else float(number)
                if start - tolerance <= position <= end + tolerance:
                    decoded, image = capture.retrieve()
                    lost += not decoded
                    if decoded:
                        frame = image if colour else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
                        last.append(Frame(f"{name}#{number}", np.asarray(frame, np.uint8)))
                number += 1
            # an estimate in some containers
            promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    except OSError as error:
        raise_if_disk_failed(path, error)
        return LastFrames(frames=(), flags=(f"unreadable video {name}: {error.strerror}",))
    flags = [f"{lost} frames of {name} cannot be decoded"] if lost else []
    earliest = end - (_END_TOLERANCE_SECONDS if span.seconds else 0.0)
    if number < _MIN_READ_SHARE * promised if span.end is None else position < earliest:
        flags.append(f"{name} breaks off after {number} frames")
    return LastFrames(frames=tuple(last), flags=tuple(flags))


@contextmanager
def _open_video(path: Path) -> Iterator[cv2.VideoCapture]:
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
