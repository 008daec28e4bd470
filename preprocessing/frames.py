"""Reads the frames of a sequence: from image files, a video, or an image file with several pages."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from preprocessing.datasets.image_files import images_of_clip
from preprocessing.datasets.reader import FrameSequence, Span, as_text
from preprocessing.datasets.tree import is_clutter, is_file, raise_if_disk_failed
from preprocessing.faces import Image
from preprocessing.pictures import SIGNATURE_BYTES, Page, PictureFile, is_picture, open_pictures
from preprocessing.unreadable import Unreadable
from preprocessing.videos import DecodedFrame, Video

_TIME_TOLERANCE_SECONDS = 1e-3
"""Tolerance of playing times: some containers round them to milliseconds."""

_END_TOLERANCE_SECONDS = 0.1
"""Seconds before the end of a span at which its last frame may begin."""

_IMAGES_PER_SECOND = 25.0
"""Assumed for images without times."""

_END = 2**62
"""Number of a frame after every end."""


class Frame(NamedTuple):
    """One frame that was read."""

    name: str
    """Name of its file; for a video or one of several pages followed by `#` and its number, from 0."""

    image: Image
    """uint8, height x width, or height x width x 3 (BGR)."""


@dataclass(frozen=True, kw_only=True)
class ReadFrames:
    """Frames of a sequence."""

    frames: tuple[Frame, ...]
    """In temporal order."""

    flags: tuple[str, ...]
    """What could not be read or is damaged, in words; `read_last_frames` lists the last image file first."""


Choose = Callable[[int], Collection[int]]
"""Chooses frames: from the number of a sequence's readable frames to the positions of some, from 0."""


def read_last_frames(sequence: FrameSequence, count: int, *, colour: bool) -> ReadFrames:
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
        name = as_text(path.name)
        try:
            source = _ImageFile(path, colour)
            last = deque(source.frames(), maxlen=count - len(frames))
        except (Unreadable, OSError) as error:
            flags.append(f"unreadable frame {name}: {_reason(path, error)}")
            continue
        several = source.count > 1
        frames[:0] = [Frame(f"{name}#{each.number}" if several else name, each.image()) for each in last]
        flags += [f"{name} {flag}" for flag in source.flags(last[0].number, _END)]
        if len(frames) == count:
            break
    return ReadFrames(frames=tuple(frames), flags=tuple(flags))


def read_chosen_frames(sequence: FrameSequence, choose: Choose, *, colour: bool) -> ReadFrames:
    """Read the readable frames that `choose` picks; none if none can be read.

    The sequence is read twice: how many frames are readable is known only at its end. Only the chosen frames
    are in memory.

    Args:
        sequence: image files, or a part of a video.
        choose: called once, if there are readable frames.
        colour: BGR images; otherwise colours are decoded to gray.

    Raises:
        OSError: the disk failed, see `raise_if_disk_failed`.
    """
    if sequence.video is not None:
        return _read_chosen_of_video(sequence.video, sequence.span, choose, colour=colour)
    return _read_chosen_images(sequence.frames, choose, colour=colour)


def count_frames(path: Path) -> int:
    """Number of frames that `VideoReader` yields for this path; errors as there."""
    source = _ImageFolder(path) if path.is_dir() else _open_source(path, colour=True)
    return sum(1 for _ in source.frames())


class VideoFrame(NamedTuple):
    """A decoded frame of a video."""

    number: int
    """Counted from 0; a frame that cannot be decoded leaves a gap."""

    seconds: float
    """Playing time at which it is shown, in seconds."""

    image: Image
    """uint8, height x width x 3 (BGR)."""


class VideoReader:
    """All frames of a video, an image file or a folder of images, which is recognized by its content.

    Images are in natural order of their names and count as 25 per second.
    """

    def __init__(self, path: Path) -> None:
        """Open the video.

        Raises:
            OSError: the file or folder cannot be opened.
            Unreadable: the file is neither a video nor an image.
        """
        self._name = as_text(path.name)
        self._source: _Source = _ImageFolder(path) if path.is_dir() else _open_source(path, colour=True)

    @property
    def rate(self) -> float:
        """Frames per second; 25 if the file does not say."""
        return self._source.rate

    def __iter__(self) -> Iterator[VideoFrame]:
        """Yield the frames that can be decoded, in order; iterate once.

        Raises:
            OSError: the disk failed.
            Unreadable: the file is an image that cannot be decoded.
        """
        for shown in self._source.frames():
            yield VideoFrame(shown.number, shown.seconds, shown.image())

    def flags(self) -> tuple[str, ...]:
        """What could not be read or is damaged, in words, after all frames were read."""
        return tuple(f"{self._name} {flag}" for flag in self._source.flags(0, _END))


class _Shown(NamedTuple):
    """A frame whose pixels are converted when they are needed."""

    number: int
    seconds: float
    image: Callable[[], Image]


class _Source(Protocol):
    """What frames are read from."""

    @property
    def rate(self) -> float:
        """Frames per second."""

    def frames(self) -> Iterator[_Shown]:
        """All frames in order."""

    def flags(self, first: int, last: int) -> list[str]:
        """What is wrong with these frames, each to be read after the name of the file."""


class _VideoFile:
    def __init__(self, path: Path, colour: bool) -> None:
        self._video = Video(path)
        self._colour = colour
        self.rate = self._video.rate
        self.flags = self._video.flags

    def frames(self) -> Iterator[_Shown]:
        for frame in self._video.frames():
            yield _Shown(frame.number, frame.seconds, partial(self._image, frame))

    def _image(self, frame: DecodedFrame) -> Image:
        image = frame.to_image()
        return image if self._colour else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


class _ImageFile:
    rate = _IMAGES_PER_SECOND

    def __init__(self, path: Path, colour: bool) -> None:
        self._file: PictureFile = open_pictures(path.read_bytes(), colour=colour)
        self._page_flags: list[tuple[int, str]] = []
        self.count = 0

    def frames(self) -> Iterator[_Shown]:
        try:
            for number, page in enumerate(self._file.pages):
                self.count += 1
                self._page_flags += [(number, flag) for flag in page.flags]
                yield _Shown(number, page.seconds, partial(_image_of, page))
        except Unreadable as error:
            if not self.count:
                raise
            self._page_flags.append((self.count, f"breaks off after {self.count} pages: {error}"))

    def flags(self, first: int, last: int) -> list[str]:
        return [*self._file.flags, *(flag for number, flag in self._page_flags if first <= number <= last)]


def _image_of(page: Page) -> Image:
    return page.image


class _ImageFolder:
    rate = _IMAGES_PER_SECOND

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.iterdir() if is_file(path) and not is_clutter(path))
        self._images = images_of_clip(files)
        self._flags: list[str] = []

    def frames(self) -> Iterator[_Shown]:
        number = 0
        for path in self._images:
            name = as_text(path.name)
            try:
                source = _ImageFile(path, colour=True)
                for shown in source.frames():
                    yield _Shown(number, number / _IMAGES_PER_SECOND, shown.image)
                    number += 1
                self._flags += [f"holds {name}, which {flag}" for flag in source.flags(0, _END)]
            except (Unreadable, OSError) as error:
                self._flags.append(f"holds the unreadable frame {name}: {_reason(path, error)}")
                number += 1

    def flags(self, first: int, last: int) -> list[str]:
        return self._flags


def _open_source(path: Path, *, colour: bool) -> _VideoFile | _ImageFile:
    with path.open("rb") as file:
        head = file.read(SIGNATURE_BYTES)
    return _ImageFile(path, colour) if is_picture(head) else _VideoFile(path, colour)


class _VideoPart:
    """The frames of a video that belong to a span.

    They are read from the file's first frame on, because seeking lands on another frame with some codecs.
    """

    def __init__(self, path: Path, span: Span, *, colour: bool) -> None:
        self._source = _open_source(path, colour=colour)
        self._span = span
        self._start = span.start or 0.0
        self._end = math.inf if span.end is None else span.end
        self._tolerance = _TIME_TOLERANCE_SECONDS if span.seconds else 0.0
        self._position, self._read = -1.0, 0

    def frames(self) -> Iterator[_Shown]:
        for shown in self._source.frames():
            self._position = shown.seconds if self._span.seconds else float(shown.number)
            if self._position > self._end + self._tolerance:
                break
            self._read = shown.number + 1
            if self._position >= self._start - self._tolerance:
                yield shown

    def flags(self, first: int) -> list[str]:
        """What is wrong with the frames from number `first` to the end, after all were read."""
        ended = self._position <= self._end + self._tolerance
        flags = self._source.flags(first, _END if ended else self._read - 1)
        earliest = self._end - (_END_TOLERANCE_SECONDS if self._span.seconds else 0.0)
        cut = self._span.end is not None and self._position < earliest
        if cut and not any("breaks off" in flag for flag in flags):
            flags.append(f"breaks off after {self._read} frames")
        return flags


def _read_video_end(path: Path, span: Span, count: int, *, colour: bool) -> ReadFrames:
    name = as_text(path.name)
    try:
        part = _VideoPart(path, span, colour=colour)
        last = deque(part.frames(), maxlen=count)
        frames = tuple(Frame(f"{name}#{shown.number}", shown.image()) for shown in last)
    except (Unreadable, OSError) as error:
        return _unreadable_video(path, error)
    flags = part.flags(last[0].number if len(last) == count else 0)
    return ReadFrames(frames=frames, flags=tuple(f"{name} {flag}" for flag in flags))


def _read_chosen_of_video(path: Path, span: Span, choose: Choose, *, colour: bool) -> ReadFrames:
    name = as_text(path.name)
    try:
        part = _VideoPart(path, span, colour=colour)
        readable = sum(1 for _ in part.frames())
        wanted = frozenset(choose(readable)) if readable else frozenset()
        first = 0
        frames: list[Frame] = []
        again = _VideoPart(path, span, colour=colour)
        for position, shown in enumerate(again.frames()):
            if position in wanted:
                first = first if frames else shown.number
                frames.append(Frame(f"{name}#{shown.number}", shown.image()))
    except (Unreadable, OSError) as error:
        return _unreadable_video(path, error)
    flags = part.flags(0 if len(frames) == readable else first)
    return ReadFrames(frames=tuple(frames), flags=tuple(f"{name} {flag}" for flag in flags))


def _unreadable_video(path: Path, error: Unreadable | OSError) -> ReadFrames:
    return ReadFrames(frames=(), flags=(f"unreadable video {as_text(path.name)}: {_reason(path, error)}",))


def _read_chosen_images(paths: Sequence[Path], choose: Choose, *, colour: bool) -> ReadFrames:
    pages: list[tuple[Path, int]] = []
    frames: list[Frame] = []
    flags: list[str] = []
    for path in paths:
        try:
            pages.append((path, sum(1 for _ in _ImageFile(path, colour).frames())))
        except (Unreadable, OSError) as error:
            flags.append(f"unreadable frame {as_text(path.name)}: {_reason(path, error)}")
    readable = sum(count for _, count in pages)
    wanted = frozenset(choose(readable)) if readable else frozenset()
    before = 0
    for path, count in pages:
        numbers = [number for number in range(count) if before + number in wanted]
        before += count
        if not numbers:
            continue
        name = as_text(path.name)
        source = _ImageFile(path, colour)
        frames += [
            Frame(f"{name}#{page.number}" if count > 1 else name, page.image())
            for page in source.frames()
            if page.number in numbers
        ]
        flags += [f"{name} {flag}" for flag in source.flags(numbers[0], _END)]
    return ReadFrames(frames=tuple(frames), flags=tuple(flags))


def _reason(path: Path, error: Unreadable | OSError) -> str:
    """Why a file cannot be read; raises `error` if the disk failed."""
    if isinstance(error, OSError):
        raise_if_disk_failed(path, error)
        return str(error.strerror)
    return str(error)
