"""Decodes text files as spreadsheets and editors write them."""

from __future__ import annotations

import codecs

_ENCODINGS = {
    # of two that begin alike, the longer first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
"""Encodings by the byte order mark that a file begins with."""


def decode_text(content: bytes) -> str:
    """Decode a text by its byte order mark, or as UTF-8 if it has none.

    Bytes that are not UTF-8 stay as they are, as in file names from the operating system.

    Raises:
        UnicodeDecodeError: the content is not in the encoding that its beginning shows.
    """
    for mark, encoding in _ENCODINGS.items():
        if content.startswith(mark):
            return content.decode(encoding, "surrogateescape" if encoding == "utf-8-sig" else "strict")
    # Without a mark, every second byte of ASCII in UTF-16 is zero.
    if content[1:4:2] == b"\0\0":
        return content.decode("utf-16-le")
    if content[0:4:2] == b"\0\0":
        return content.decode("utf-16-be")
    return content.decode("utf-8", "surrogateescape")
