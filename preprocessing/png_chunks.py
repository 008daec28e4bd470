"""Checks the checksums of a PNG's chunks, and keeps those that its pixels need."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from preprocessing.unreadable import Unreadable

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"}
"""Chunks without which pixels are missing or wrong."""

_NEEDED = _PIXELS | {b"tRNS", b"eXIf", b"sBIT"}
"""Chunks that a decoder gets; of others, such as colour profiles, it could only complain."""

_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


@dataclass(frozen=True, kw_only=True)
class PngChunks:
    """The checked chunks of a PNG."""

    content: bytes
    """A PNG of the sound chunks that a decoder needs."""

    bits: int
    """Bits per sample."""

    maximum: int
    """Largest possible value of a sample of 16 bits."""

    animated: bool

    flags: tuple[str, ...]
    """What is damaged without effect on pixels, each to be read after the name of the file."""


def read_png_chunks(content: bytes) -> PngChunks:
    """Check every chunk of a PNG.

    Raises:
        Unreadable: a chunk that pixels depend on is damaged or missing.
    """
    kept, flags, names = [PNG_SIGNATURE], [], set()
    header, significant = b"", 16
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(content) and b"IEND" not in names:
        length, name = struct.unpack_from(">I4s", content, position)
        chunk = content[position : position + 12 + length]
        if len(chunk) < 12 + length:
            raise Unreadable("it breaks off before its end")
        position += len(chunk)
        shown = name.decode("ascii", "backslashreplace")
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            # the case of the first letter says whether a decoder needs the chunk
            if name in _PIXELS or not name[:1].islower():
                raise Unreadable(f"its chunk {shown} has a wrong checksum")
            flags.append(f"has a wrong checksum in its chunk {shown}, which is not read")
            continue
        names.add(name)
        if name in _NEEDED:
            kept.append(chunk)
        header = chunk[8:-4] if name == b"IHDR" else header
        significant = chunk[8] if name == b"sBIT" and length else significant
    if len(header) < 13 or b"IDAT" not in names:
        raise Unreadable("it breaks off before its pixels")
    if b"IEND" not in names:
        kept.append(_END)
        flags.append("breaks off before its end")
    return PngChunks(
        content=b"".join(kept),
        bits=header[8],
        maximum=_maximum(significant),
        animated=b"acTL" in names,
        flags=tuple(flags),
    )


def _maximum(significant: int) -> int:
    return 65535 if not 8 < significant < 16 else 2**significant - 1
