"""Reads the frames of a sequence from image files or a video."""

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

# OpenCV's copy of FFmpeg prints errors about broken files; foldwise records them as flags instead.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_TIME_TOLERANCE_SECONDS = 1e-3
"""Tolerance of playing times: some containers round them to milliseconds."""

_END_TOLERANCE_SECONDS = 0.1
"""Seconds before the end of a span at which its last frame may begin."""

_DEFAULT_FRAMES_PER_SECOND = 25.0
"""Assumed for folders of images, and where a video's header gives no usable rate."""

_MIN_READ_SHARE = 0.9
"""Minimum share of the frames in a video's header that must be there; with fewer, the video breaks off."""


class Frame(NamedTuple):
    """One frame that was read."""

    name: str
    """Name of its file; for a video followed by `#` and the number of the frame, from 0."""

    image: Image
    """uint8, height x width, or height x width x 3 (BGR)."""


@dataclass(frozen=True, kw_only=True)
class LastFrames:
    """The end of a sequence."""

    frames: tuple[Frame, ...]
    """In temporal order."""

    flags: tuple[str, ...]
    """What could not be read, in words, the last frame first."""


def read_last_frames(sequence: FrameSequence, count: int, *, colour: bool) -> LastFrames:
    """Read the last `count` readable frames; fewer if the sequence has fewer, none if none can be read.

    Args:
        sequence: image files, or a part of a video.
        count: maximum number of frames, 1 or more; at most this many are in memory at a time.
        colour: BGR images; otherwise colours are decoded to gray.

    Raises:
        OSError: the disk failed, see `raise_if_disk_failed`.
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
    """A decoded frame of a video."""

    number: int
    """Counted from 0; a frame that cannot be decoded leaves a gap."""

    seconds: float
    """Playing time at which it is shown, in seconds."""

    image: Image
    """uint8, height x width x 3 (BGR)."""


def read_video(path: Path) -> Iterator[VideoFrame]:
    """Yield all frames of a video that can be decoded, in order; none if the file is no video.

    A folder counts as a video of the images in it, in natural order of their names.

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
    """The rate in a video's header; 25 if it gives none that is usable, and for a folder of images.

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
    """Read from the file's first frame on, because seeking lands on another frame with some codecs."""
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
    # By descriptor: OpenCV accepts only text, which not every file name is, and takes some for patterns.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        capture = cv2.VideoCapture(f"/dev/fd/{descriptor}", cv2.CAP_FFMPEG)
        try:
            yield capture
        finally:
            capture.release()
    finally:
        os.close(descriptor)
