"""Reads from the directories of a TIFF which pages it has, and the depth and range of their values."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from preprocessing.unreadable import Unreadable

TIFF_SIGNATURES = (b"II*\0", b"MM\0*")

_NEW_SUBFILE_TYPE, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 254, 258, 262, 339
_MAXIMA = (281, 341)
"""Tags that state the largest value: MaxSampleValue and SMaxSampleValue."""

_MAX_PAGES = 100_000
"""Pages after which a file counts as damaged: its directories may form a circle."""


@dataclass(frozen=True, kw_only=True)
class TiffPage:
    """One page of a TIFF that is no thumbnail."""

    index: int
    """Its number among all directories, from 0."""

    bits: int
    """Bits per sample."""

    floating: bool
    """Whether samples are floating-point numbers."""

    maximum: int
    """Largest possible value of a sample that is an integer."""

    white_is_zero: bool
    """Whether larger values are darker."""

    @property
    def ordinary(self) -> bool:
        """Whether its samples are integers of at most 8 bits."""
        return self.bits <= 8 and not self.floating


def read_tiff_pages(content: bytes) -> list[TiffPage]:
    """The pages of a TIFF, without thumbnails.

    Raises:
        Unreadable: a directory is damaged, or there is none.
    """
    file = io.BytesIO(content)
    pages: list[TiffPage] = []
    try:
        directory = ImageFileDirectory_v2(content[:8])
        seen: set[int] = set()
        while directory.next and directory.next not in seen and len(seen) < _MAX_PAGES:
            seen.add(directory.next)
            file.seek(directory.next)
            directory.load(file)
            if int(directory.get(_NEW_SUBFILE_TYPE, 0)) & 1:
                continue
            pages.append(_page(len(seen) - 1, directory))
    except Exception as error:  # Pillow raises errors of many kinds for damaged directories
        raise Unreadable(f"its directory of pages is damaged: {error}") from error
    if not pages:
        raise Unreadable("it breaks off before its directory of pages")
    return pages


def _page(index: int, directory: Any) -> TiffPage:
    bits = max(_values(directory, _BITS, 1))
    # Other values are the largest of this picture, not of its range.
    ranges = {2**fewer - 1 for fewer in range(9, bits)}
    stated = {int(value) for tag in _MAXIMA for value in _values(directory, tag, 0)}
    return TiffPage(
        index=index,
        bits=bits,
        floating=3 in _values(directory, _SAMPLE_FORMAT, 1),
        white_is_zero=_values(directory, _PHOTOMETRIC, 1)[0] == 0,
        maximum=max(ranges & stated, default=2**bits - 1),
    )


def _values(directory: Any, tag: int, default: int) -> tuple[Any, ...]:
    value = directory.get(tag, default)
    return value if isinstance(value, tuple) else (value,)
