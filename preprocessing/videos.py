"""Decodes video files with FFmpeg: frames with their numbers and times, and what is missing or damaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av.logging
import numpy as np
from av.packet import Packet as EncodedPacket
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from preprocessing.faces import Image
from preprocessing.unreadable import Unreadable
from preprocessing.video_damage import Packet, find_tainted
from preprocessing.video_packets import list_packets, open_video, read_packets

_MAX_PIXEL_RATIO = 4
"""Ratio of a pixel's sides above which the header counts as wrong."""

_WRONG_CHECKSUM = ("CRC mismatch", "mismatching checksum")
"""What the decoders of FFV1 and HEVC log about a wrong checksum."""

_MAX_RUNS = 4
"""Runs of frames that a flag names before it is cut short."""


class DecodedFrame(NamedTuple):
    """A frame as the decoder gave it."""

    number: int
    """Counted from 0 in the order of showing; a frame that cannot be decoded leaves a gap."""

    seconds: float
    """Playing time at which it is shown, from 0."""

    decoded: VideoFrame

    pixel_ratio: Fraction
    """Width of a pixel divided by its height."""

    def to_image(self) -> Image:
        """The frame as it is to be seen: upright, with square pixels; uint8, height x width x 3 (BGR).

        Raises:
            Unreadable: FFmpeg cannot convert the format of its pixels.
        """
        # One side is enlarged, so that no detail is lost.
        width = round(self.decoded.width * max(self.pixel_ratio, Fraction(1)))
        height = round(self.decoded.height / min(self.pixel_ratio, Fraction(1)))
        try:
            scaled = self.decoded.reformat(width, height, "bgr24", interpolation="BICUBIC").to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            pixels = self.decoded.format.name
            raise Unreadable(f"its pixels of the format {pixels} cannot be converted") from error
        return np.ascontiguousarray(np.rot90(scaled, self.decoded.rotation // 90), np.uint8)


class Video:
    """A video file: its rate, its frames, and what is wrong with them."""

    def __init__(self, path: Path) -> None:
        """List the packets of the file; nothing is decoded yet.

        Raises:
            OSError: the file cannot be opened or read.
            Unreadable: the content is no video that FFmpeg can read.
        """
        self._path = path
        self._list = list_packets(path)
        self._interlaced = False
        self._exhausted = False
        self._latest = -1
        self.count = 0
        """Number of frames that were decoded so far."""

    @property
    def rate(self) -> float:
        """Frames per second in the header; 25 if it gives none that is usable."""
        return self._list.rate

    def frames(self) -> Iterator[DecodedFrame]:
        """Decode all frames in the order of showing; call it once.

        Raises:
            OSError: the file cannot be read.
        """
        with open_video(self._path) as (container, stream):
            context = stream.codec_context
            # With several threads, a decoder reports the damage of one packet at another.
            context.thread_count = 1
            context.options = {"err_detect": "crccheck"}
            context.copy_opaque = True
            ratio = _pixel_ratio(stream.sample_aspect_ratio or context.sample_aspect_ratio)
            for packet, content in zip(self._list.packets, read_packets(container, stream), strict=False):
                if packet.lost:
                    continue
                content.opaque = packet
                decoded, sound = _decode(context, content)
                packet.damaged |= not sound
                yield from self._numbered(decoded, ratio)
            yield from self._numbered(_decode(context, None)[0], ratio)
        self._exhausted = True

    def flags(self, first: int, last: int) -> list[str]:
        """What is wrong with the frames from `first` to `last`, once all up to `last` are decoded.

        Each is to be read after the name of the file.
        """
        return list(self._flags(range(first, last + 1)))

    def _numbered(self, decoded: Iterable[VideoFrame], ratio: Fraction) -> Iterator[DecodedFrame]:
        for frame in decoded:
            number = self.count
            if isinstance(packet := frame.opaque, Packet):
                if self._list.numbered and packet.decoded:
                    continue  # a second picture that the decoder made up for a missing one
                packet.decoded = True
                packet.damaged |= frame.is_corrupt
                packet.number = number if packet.number is None else packet.number
                number = packet.number
            self._interlaced |= frame.interlaced_frame
            self.count += 1
            self._latest = number
            yield DecodedFrame(number, self._seconds(number), frame, ratio)

    def _seconds(self, number: int) -> float:
        times = self._list.seconds
        return times[number] if number < len(times) else number / self.rate

    def _flags(self, wanted: range) -> Iterator[str]:
        shown = [packet for packet in self._list.packets if not packet.silent]
        lost = [packet for packet in shown if not packet.decoded and self._is_past(packet)]
        if self._interlaced and len(shown) == 2 * self.count:
            lost = []  # each packet is a field, half of a frame
        for packet in lost:
            packet.damaged = True
        if not self._list.numbered and lost:
            yield f"has {len(lost)} of {len(shown)} frames that cannot be decoded"
        elif numbers := _numbers(lost, wanted):
            yield f"cannot be decoded at {_runs(numbers)}"
        tainted = find_tainted(self._list.packets)
        if numbers := _numbers((packet for packet in tainted if packet.decoded), wanted):
            yield f"is damaged at {_runs(numbers)}, or these follow a damaged frame"
        for number, missing in self._list.gaps.items():
            if number in wanted:
                yield f"has a gap in its times before frame {number}, where {missing} frames may be missing"
        if self._list.cut and wanted.stop >= self.count:
            of_all = f" of {self._list.promised}" if self._list.promised > self.count else ""
            yield f"breaks off after {self.count}{of_all} frames"
        elif self._list.promised > len(shown):
            yield f"has only {len(shown)} of the {self._list.promised} frames that its header promises"
        if self._interlaced:
            yield "is stored as interlaced; if moving edges look like combs, deinterlace it"

    def _is_past(self, packet: Packet) -> bool:
        return self._exhausted or (packet.number is not None and packet.number < self._latest)


def _decode(
    context: VideoCodecContext, content: EncodedPacket[VideoStream] | None
) -> tuple[list[VideoFrame], bool]:
    """The frames that are ready after a packet (None: after the last), and whether the decoder is content."""
    # Decoders only log a wrong checksum; PyAV hides the second of two equal lines unless told otherwise.
    av.logging.set_skip_repeated(False)
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as lines:
            frames = context.decode(content)
    except av.FFmpegError:
        return [], False
    finally:
        av.logging.set_level(None)
    return frames, not any(complaint in text for _, _, text in lines for complaint in _WRONG_CHECKSUM)


def _pixel_ratio(stated: Fraction | None) -> Fraction:
    if not stated or not Fraction(1, _MAX_PIXEL_RATIO) <= stated <= _MAX_PIXEL_RATIO:
        return Fraction(1)
    return stated


def _numbers(packets: Iterable[Packet], wanted: range) -> list[int]:
    return sorted(packet.number for packet in packets if packet.number is not None and packet.number in wanted)


def _runs(numbers: Sequence[int]) -> str:
    """Numbers in words, such as `frames 3, 7 to 9`."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in runs[:_MAX_RUNS]]
    more = ", ..." if len(runs) > _MAX_RUNS else ""
    return f"frame{'s' if len(numbers) > 1 else ''} {', '.join(texts)}{more}"
