"""What containers promise: how many frames, and how many bytes."""

from __future__ import annotations

from av.video.stream import VideoStream

_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
"""Identifier of the object in ASF (WMV) that states the size of the file."""

_MATROSKA, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"

_TS_SYNC = 0x47
_TS_PACKETS = ((0, 188), (4, 192), (0, 204))
"""Offset of the first synchronization byte and size of the packets in kinds of transport streams."""

HEAD_BYTES = 65536
"""Bytes at the start of a file that hold what `missing_bytes` reads."""


def missing_bytes(head: bytes, size: int) -> bool:
    """Whether a file is shorter than its container states.

    Args:
        head: the first `HEAD_BYTES` of the file, or all of it.
        size: bytes of the whole file.
    """
    if head.startswith(b"RIFF") and len(head) >= 8:
        return int.from_bytes(head[4:8], "little") + 8 > size
    if head.startswith(_MATROSKA):
        return _segment_end(head) > size
    if (at := head.find(_ASF_PROPERTIES)) >= 0 and len(head) >= at + 48:
        return int.from_bytes(head[at + 40 : at + 48], "little") > size
    for offset, packet in _TS_PACKETS:
        syncs = head[offset : offset + 5 * packet : packet]
        if len(syncs) > 1 and set(syncs) == {_TS_SYNC}:
            return size % packet != 0
    return False


def has_index(container: str) -> bool:
    """Whether the index of a container, by FFmpeg's name of it, lists all frames and not only key frames."""
    return not {"mov", "avi"}.isdisjoint(container.split(","))


def promised_frames(container: str, stream: VideoStream) -> int:
    """Number of frames that the index of a video's container lists as shown; 0 if it has no such index.

    Args:
        container: FFmpeg's name of the container, such as `mov,mp4,m4a,3gp,3g2,mj2`.
        stream: the video, after all its packets were read.
    """
    if not has_index(container):
        return 0
    entries = stream.index_entries
    if len(entries) < stream.frames:
        return stream.frames  # an AVI that was cut has lost its index
    return sum(entry.size > 0 and not entry.is_discard for entry in entries)


def _segment_end(head: bytes) -> int:
    """Where the segment of a Matroska file ends; 0 if it does not say, as in a live recording."""
    at = head.find(_SEGMENT)
    if at < 0 or len(head) < at + 12:
        return 0
    length = 9 - head[at + 4].bit_length()
    if length > 8:
        return 0
    field = head[at + 4 : at + 4 + length]
    value = int.from_bytes(field, "big") & ((1 << (7 * length)) - 1)
    unknown = value == (1 << (7 * length)) - 1
    return 0 if unknown else at + 4 + length + value
