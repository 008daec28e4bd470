"""Which frames follow a damaged one, and which bytes no encoder writes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from preprocessing.video_damage import Damage, Packet, find_damage, find_tainted


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Packets in the order of decoding: their numbers, the keys among them, and the damaged ones."""

    numbers: tuple[int, ...]
    keys: frozenset[int]
    damaged: frozenset[int]
    tainted: list[int]


def stream(numbers: tuple[int, ...], keys: set[int], damaged: set[int], tainted: list[int]) -> Stream:
    return Stream(numbers=numbers, keys=frozenset(keys), damaged=frozenset(damaged), tainted=tainted)


IN_ORDER = tuple(range(6))
REORDERED = (0, 3, 1, 2, 6, 4, 5, 7)
"""Frame 6 is a key frame; 4 and 5 are decoded after it and shown before it."""


@pytest.mark.parametrize(
    "given",
    [
        stream(IN_ORDER, {0}, set(), []),
        stream(IN_ORDER, {0}, {2}, [2, 3, 4, 5]),
        stream(IN_ORDER, {0, 4}, {2}, [2, 3]),
        stream(IN_ORDER, {0, 4}, {4}, [4, 5]),
        stream(IN_ORDER, set(IN_ORDER), {2}, [2]),
        stream(IN_ORDER, {3}, set(), [0, 1, 2]),
        stream(IN_ORDER, set(), set(), []),
        stream(REORDERED, {0, 6}, {3}, [3, 1, 2, 4, 5]),
        stream(REORDERED, {0, 6}, {4}, [4, 5]),
        stream(REORDERED, {0, 6}, {6}, [6, 4, 5, 7]),
        stream(REORDERED, {0, 6}, {7}, [7]),
    ],
)
def test_damage_spreads_until_a_key_frame(given: Stream) -> None:
    packets = [
        Packet(
            key=number in given.keys, damaged=number in given.damaged, lost=False, silent=False, number=number
        )
        for number in given.numbers
    ]
    assert [packet.number for packet in find_tainted(packets)] == given.tainted


AVCC = bytes([1, 66, 0, 30, 0xFF])
"""Lengths of four bytes stand before the units."""


def unit(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


@pytest.mark.parametrize(
    ("content", "codec", "extradata", "damage"),
    [
        (unit(b"\x65" + bytes(range(1, 200))), "h264", AVCC, Damage.NONE),
        (unit(b"\x65\0\0\3\1\x80") + unit(b"\x65\x80\0\0\0"), "h264", AVCC, Damage.NONE),
        (unit(b"\x65\0\0\0\x12\x80"), "h264", AVCC, Damage.POSSIBLE),
        (unit(b"\x65\0\0\1\x80"), "h264", AVCC, Damage.POSSIBLE),
        (unit(b"\x65\x80" + bytes(40)), "h264", AVCC, Damage.POSSIBLE),
        (b"\0\0\0\1\x65\x80\0\0\0\0\1\x41\x80\0\0", "h264", None, Damage.NONE),
        (b"\0\0\0\1\x65\0\0\0\0\x12\x80", "hevc", None, Damage.POSSIBLE),
        (b"\x82" + bytes(31) + b"\x82", "vp9", None, Damage.NONE),
        (b"\x82" + bytes(32) + b"\x82", "vp9", None, Damage.POSSIBLE),
        (bytes(1000), "rawvideo", None, Damage.NONE),
        (b"no jpeg", "mjpeg", None, Damage.LOST),
    ],
)
def test_bytes_that_no_encoder_writes(
    content: bytes, codec: str, extradata: bytes | None, damage: Damage
) -> None:
    assert find_damage(content, codec, extradata) is damage
