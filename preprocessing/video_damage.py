"""Finds damage that a decoder conceals: impossible bytes in packets, and frames that follow a damaged one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from preprocessing.jpegs import EXTRANEOUS_BYTES, find_jpeg_damage

_LENGTH_AT = {"h264": 4, "hevc": 21}
"""Index of the byte in the decoder configuration of MP4 that holds the length of unit lengths, by codec."""

_NO_START_CODES = re.compile(rb"\x00\x00[\x00-\x02]|\x00\x00\x03[\x04-\xff]")
"""Bytes that a unit of H.264 or HEVC never contains, because they would look like a start code."""

_NO_ZEROS_BETWEEN = re.compile(rb"\x00{3,}[^\x00\x01]|\x00\x00\x02|\x00\x00\x03[\x04-\xff]")
"""The same where start codes separate units, and zeros may stand in front of a start code."""

_HOLE = re.compile(rb"\x00{32}")
"""More zeros than these codecs write in a row."""

_WITHOUT_HOLES = {
    *("vp8", "vp9", "av1", "theora", "vc1", "prores"),
    *("h263", "flv1", "wmv1", "wmv2", "wmv3", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3"),
}
"""Codecs whose decoders turn almost any bytes into a picture."""

_MAX_PADDING = 8
"""Zero bytes up to which the end of a unit is padding."""


class Damage(StrEnum):
    """What the bytes of a packet show."""

    NONE = "none"

    POSSIBLE = "possible"
    """They are not what an encoder writes, but its frame may be fine or can be guessed by the decoder."""

    LOST = "lost"
    """Pixels are missing."""


@dataclass(kw_only=True, eq=False, slots=True)
class Packet:
    """What is known of a packet, which holds one frame in most codecs."""

    key: bool
    """Whether decoding can begin with it."""

    damaged: bool
    """Whether its bytes or its decoder say that it is damaged."""

    lost: bool
    """Whether its frame is not worth decoding, because pixels are missing and no other frame depends on it."""

    silent: bool
    """Whether it shows no frame, as the container or its own header says."""

    number: int | None = None
    """Number of its frame, from 0 in the order of showing; None while it is unknown."""

    decoded: bool = False
    """Whether its frame was decoded."""


def find_damage(content: bytes, codec: str, extradata: bytes | None) -> Damage:
    """Whether a packet has bytes that no encoder of this codec writes, such as a hole of zeros.

    Args:
        content: the packet.
        codec: FFmpeg's name of the codec, such as `h264`.
        extradata: the decoder configuration that the container stores.
    """
    if codec == "mjpeg":
        complaint = find_jpeg_damage(content)
        if complaint is None:
            return Damage.NONE
        return Damage.POSSIBLE if EXTRANEOUS_BYTES in complaint else Damage.LOST
    if codec in _LENGTH_AT:
        length_bytes = _length_bytes(extradata, codec)
        pattern = _NO_START_CODES if length_bytes else _NO_ZEROS_BETWEEN
        units = _units(content, length_bytes) if length_bytes else [content]
    else:
        pattern, units = _HOLE, [content] if codec in _WITHOUT_HOLES else []
    return Damage.POSSIBLE if any(pattern.search(_without_padding(unit)) for unit in units) else Damage.NONE


def find_tainted(packets: Sequence[Packet]) -> list[Packet]:
    """The packets whose frames are damaged, or are predicted from a damaged or missing one, until a key frame.

    Args:
        packets: all packets of a stream in the order of decoding.
    """
    tainted = []
    # Before its first key frame, a stream predicts from nothing.
    spoiled = any(packet.key for packet in packets) and not packets[0].key
    leading_spoiled = False
    key_number = 0
    for packet in packets:
        if packet.key:
            leading_spoiled = spoiled
            spoiled = packet.damaged
            key_number = packet.number or 0
        # A frame decoded after a key frame but shown before it may depend on frames before both, but no frame
        # shown after the key frame depends on it.
        leading = packet.number is not None and packet.number < key_number
        if leading:
            leading_spoiled |= packet.damaged
        else:
            spoiled |= packet.damaged
        if spoiled or (leading and leading_spoiled):
            tainted.append(packet)
    return tainted


def _length_bytes(extradata: bytes | None, codec: str) -> int:
    """Bytes of the length in front of each unit; 0 if start codes separate the units."""
    at = _LENGTH_AT[codec]
    if not extradata or extradata[0] != 1 or len(extradata) <= at:
        return 0
    return (extradata[at] & 3) + 1


def _units(content: bytes, length_bytes: int) -> list[bytes]:
    """The units of a packet; the last may be shorter than its length says."""
    units, at = [], 0
    while at + length_bytes < len(content):
        length = int.from_bytes(content[at : at + length_bytes], "big")
        at += length_bytes
        units.append(content[at : at + length])
        at += length
    return units


def _without_padding(unit: bytes) -> bytes:
    stripped = unit.rstrip(b"\0")
    return stripped if len(unit) - len(stripped) <= _MAX_PADDING else unit
