"""Decodes JPEGs and reports the damage that other decoders conceal: they fill what is missing with gray."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg

EXTRANEOUS_BYTES = "extraneous bytes before marker"
"""Part of a complaint with two causes: some cameras pad their files, and a changed byte can look the same."""

_HUFFMAN_TABLE = b"\xff\xc4"


class Jpeg(NamedTuple):
    """A decoded JPEG."""

    pixels: npt.NDArray[np.uint8]
    """Height x width x 1 (gray), x 3 (BGR) or x 4 (CMYK)."""

    complaint: str | None
    """What libjpeg complains about; None if nothing."""


def decode_jpeg(content: bytes, *, colour: bool) -> Jpeg:
    """Decode a JPEG to BGR or gray, or to CMYK if it has these colours.

    Raises:
        ValueError: nothing can be decoded; the message is libjpeg's.
    """
    for colorspace in ("BGR" if colour else "GRAY", "CMYK"):
        try:
            return Jpeg(simplejpeg.decode_jpeg(content, colorspace=colorspace, strict=True), None)
        except ValueError as error:
            complaint = str(error)
            if "Unsupported color conversion" not in complaint:
                break
    return Jpeg(simplejpeg.decode_jpeg(content, colorspace=colorspace, strict=False), complaint)


def find_jpeg_damage(content: bytes) -> str | None:
    """What libjpeg complains about when it decodes a frame of Motion JPEG; None if nothing."""
    try:
        return decode_jpeg(content, colour=False).complaint
    except ValueError as error:
        complaint = str(error)
    if "Huffman table" not in complaint:
        return complaint
    # Frames may leave out the tables of the standard.
    try:
        return decode_jpeg(content[:2] + _standard_tables() + content[2:], colour=False).complaint
    except ValueError as error:
        return str(error)


@cache
def _standard_tables() -> bytes:
    """The Huffman tables of the JPEG standard, as segments of a file."""
    content: bytes = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
    tables = b""
    at = content.find(_HUFFMAN_TABLE)
    while content[at : at + 2] == _HUFFMAN_TABLE:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        tables += content[at:end]
        at = end
    return tables
