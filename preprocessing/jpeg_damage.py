"""Finds damage in a JPEG that decoders conceal: they fill what is missing with gray, and say nothing."""

from __future__ import annotations

from functools import cache

import numpy as np
import simplejpeg

_HUFFMAN_TABLE = b"\xff\xc4"


def jpeg_damage(content: bytes) -> str | None:
    """What libjpeg complains about when it decodes a JPEG; None if nothing.

    Args:
        content: a JPEG file, or a frame of Motion JPEG, which may leave out the standard's own tables.
    """
    complaint = _complaint(content, "GRAY")
    if complaint and "Unsupported color conversion" in complaint:
        complaint = _complaint(content, "CMYK")
    if complaint and "Huffman table" in complaint:
        complaint = _complaint(content[:2] + _standard_tables() + content[2:], "GRAY")
    return complaint


def _complaint(content: bytes, colorspace: str) -> str | None:
    try:
        simplejpeg.decode_jpeg(content, colorspace=colorspace, strict=True)
    except ValueError as error:
        return str(error)
    return None


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
