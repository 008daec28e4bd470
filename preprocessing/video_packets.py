"""Opens video files with FFmpeg and lists their packets: what the container says, before decoding."""

from __future__ import annotations

import errno
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import av
from av.container import InputContainer
from av.packet import Packet as EncodedPacket
from av.stream import Disposition
from av.video.stream import VideoStream

from preprocessing.datasets.tree import raise_if_disk_failed
from preprocessing.unreadable import Unreadable, is_heic, known_reason
from preprocessing.video_containers import HEAD_BYTES, has_index, missing_bytes, promised_frames
from preprocessing.video_damage import Damage, Packet, find_damage

_CONTAINERS = (
    "mov,matroska,avi,flv,asf,mpeg,mpegts,mpegvideo,ogg,mxf,h264,hevc,m4v,mjpeg,ivf,obu,nut,dv,rm,vc1,"
    "yuv4mpegpipe,wtv,gxf"
)
"""Containers that FFmpeg may take a file for. Others are lists that open further files, or take any text."""

_DEFAULT_RATE = Fraction(25)
"""Frames per second where the header gives no rate from 1 to 1000."""

_MAX_JITTER = 0.25
"""Share of the usual time between two frames by which a time may differ in a video of constant rate."""

_MIN_REGULAR_SHARE = 0.75
"""Minimum share of usual times between two frames in a video of constant rate."""

_VP8_SHOWN = 0x10
"""Bit in the first byte of a frame of VP8; without it the frame is only a reference."""


@dataclass(frozen=True, kw_only=True)
class PacketList:
    """The packets of a video file."""

    packets: tuple[Packet, ...]
    """In the order of decoding."""

    seconds: tuple[float, ...]
    """Playing time of each frame that is shown, by its number, from 0."""

    numbered: bool
    """Whether the packets have their frames' numbers; if not, only the order of decoding is known."""

    gaps: Mapping[int, int]
    """Number of frames that are missing before a frame, by its number, where the times show that."""

    rate: float
    """Frames per second in the header; 25 if it gives none that is usable."""

    promised: int
    """Number of frames that the container lists; 0 if it has no list."""

    cut: bool
    """Whether the file ends before the end that its container states."""


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container of a video file and its first video, recognized by content.

    Raises:
        OSError: the file cannot be opened or read.
        Unreadable: the content is no video that FFmpeg can read.
    """
    with path.open("rb") as file:
        # FFmpeg takes it for a video, and each tile of the picture for a frame.
        if is_heic(file.read(HEAD_BYTES)):
            raise Unreadable(_no_video(path))
        file.seek(0)
        options = {"format_whitelist": _CONTAINERS}
        try:
            with av.open(
                _Content(file), "r", container_options=options, metadata_errors="replace"
            ) as container:
                for stream in container.streams.video:
                    if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
                        yield container, stream
                        return
                raise Unreadable("it holds only sound" if container.streams.audio else _no_video(path))
        except av.FFmpegError as error:
            raise Unreadable(_no_video(path)) from error


def is_video(path: Path) -> bool:
    """Whether the content of a file is a container with a video in it, whatever its name is.

    Raises:
        OSError: the disk failed, see `raise_if_disk_failed`.
    """
    try:
        with open_video(path):
            return True
    except Unreadable:
        return False
    except OSError as error:
        raise_if_disk_failed(path, error)
        return False


def read_packets(container: InputContainer, stream: VideoStream) -> Iterator[EncodedPacket[VideoStream]]:
    """The packets of a video that are not empty. A damaged container ends them early.

    Raises:
        OSError: the file cannot be read.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        if packet.size:
            yield packet


def list_packets(path: Path) -> PacketList:
    """List the packets of a video file, and find those whose bytes are damaged.

    Raises:
        OSError: the file cannot be opened or read.
        Unreadable: the content is no video that FFmpeg can read.
    """
    with open_video(path) as (container, stream):
        codec, extradata = stream.codec.canonical_name, stream.codec_context.extradata
        packets: list[Packet] = []
        shown_at: list[int | None] = []
        decoded_at: list[int | None] = []
        partial = False
        for content in read_packets(container, stream):
            data = bytes(content)
            damage = find_damage(data, codec, extradata)
            partial = content.is_corrupt
            shown_at.append(content.pts)
            decoded_at.append(content.dts)
            packets.append(
                Packet(
                    key=content.is_keyframe,
                    damaged=partial or damage is not Damage.NONE,
                    lost=damage is Damage.LOST,
                    silent=content.is_discard or (codec == "vp8" and not data[0] & _VP8_SHOWN),
                )
            )
        shown = [index for index, packet in enumerate(packets) if not packet.silent]
        # AVI has no times of showing; FFmpeg guesses them, and guesses wrong where frames are reordered.
        guessed = container.format.name == "avi"
        times = decoded_at if guessed else shown_at
        numbered = not (guessed and stream.codec_context.has_b_frames) and _distinct(times, shown)
        if numbered:
            for number, index in enumerate(sorted(shown, key=lambda index: times[index] or 0)):
                packets[index].number = number
        else:
            times = decoded_at
        rate = stream.average_rate or stream.guessed_rate or _DEFAULT_RATE
        rate = rate if 1 <= rate <= 1000 else _DEFAULT_RATE
        seconds = [number / float(rate) for number in range(len(shown))]
        gaps: dict[int, int] = {}
        if _distinct(times, shown) and stream.time_base is not None:
            ticks = sorted(times[index] or 0 for index in shown)
            seconds = [float((tick - ticks[0]) * stream.time_base) for tick in ticks]
            # An index lists all frames, so that it has no gap where one is damaged.
            gaps = {} if has_index(container.format.name) else _find_gaps(ticks)
        for packet in packets:
            packet.damaged |= packet.number in gaps and not packet.key
        promised = promised_frames(container.format.name, stream)
    with path.open("rb") as file:
        missing = missing_bytes(file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size)
    return PacketList(
        packets=tuple(packets),
        seconds=tuple(seconds),
        numbered=numbered,
        gaps=gaps,
        rate=float(rate),
        promised=promised,
        cut=missing or partial,
    )


class _Content:
    """A file as FFmpeg reads it.

    FFmpeg also reports damage as an input/output error. A failure of the disk is raised here instead, as
    Python's own OSError. There is no name, because FFmpeg would guess the format from it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._failed = False
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if self._failed:
            return b""
        try:
            return self._file.read(size)
        except OSError:
            self._failed = True
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return -1  # a damaged file names a position before its beginning


def _find_gaps(ticks: Sequence[int]) -> dict[int, int]:
    """How many frames are missing before a frame, by its number, if all others are shown at a constant rate."""
    steps = [after - before for before, after in pairwise(ticks)]
    usual = statistics.median(steps) if steps else 0
    regular = [abs(step - usual) <= _MAX_JITTER * usual for step in steps]
    if sum(regular) < _MIN_REGULAR_SHARE * len(steps):
        return {}
    return {
        number: round(step / usual) - 1
        for number, step in enumerate(steps, start=1)
        if usual and step > (2 - _MAX_JITTER) * usual
    }


def _no_video(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head[4:8] == b"ftyp":
        return known_reason(head) or "it is an MP4 or MOV without its index, so its end is missing"
    return known_reason(head) or "it is no video or image that foldwise can read"


def _distinct(times: list[int | None], shown: list[int]) -> bool:
    found = {times[index] for index in shown}
    return len(found) == len(shown) and None not in found
