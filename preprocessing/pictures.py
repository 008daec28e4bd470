"""Decodes image files to 8 bits: every page and every depth; damage is an error or a flag."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from preprocessing.faces import Image
from preprocessing.jpegs import EXTRANEOUS_BYTES, Jpeg, decode_jpeg
from preprocessing.png_chunks import PNG_SIGNATURE, read_png_chunks
from preprocessing.tiff_pages import TIFF_SIGNATURES, TiffPage, read_tiff_pages
from preprocessing.unreadable import Unreadable, known_reason

# OpenCV prints what libtiff says about a file; foldwise says it in its own words.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Otherwise Pillow knows only some formats until it has met an unknown one.
Pillow.init()

FORMATS = ("PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "AVIF", "JPEG2000")
"""What Pillow may take a file for: pictures, but no documents, and nothing that needs another program."""

SIGNATURE_BYTES = 16
"""Bytes at the start of a file that tell whether it is a picture."""

_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|II\*\0|MM\0\*|GIF8[79]a|RIFF....WEBP|BM|P[1-6]\s|....ftypavi[fs]|"
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    re.DOTALL,
)

_SEQUENCES = {"PNG", "TIFF", "WEBP", "GIF", "AVIF"}
"""Formats whose further pages are frames."""

_PAGE_SECONDS = 0.04
"""Seconds that a page is shown if its file does not say."""

_JPEG_SIGNATURE, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"

_ORIENTATION = 274
"""Tag of EXIF that says how an image is to be turned."""

_TURNS = {
    **{2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True)},
    **{6: (3, False), 7: (1, True), 8: (1, False)},
}
"""Quarters of a turn to the left, and whether the result is mirrored, by orientation."""

_MIN_16_BIT_PEAK = 4096
"""Minimum largest value of a picture of 16 bits; below it, 8 bits would have at most 16 grays of it."""

_MIN_BRIGHT_PEAK = 16384
"""Largest value of a picture of 16 bits below which it may have fewer bits, so it is flagged."""


class Page(NamedTuple):
    """One decoded picture of a file."""

    seconds: float
    """Playing time at which it is shown, from 0."""

    image: Image
    """uint8, height x width, or height x width x 3 (BGR)."""

    flags: tuple[str, ...] = ()
    """What is wrong with it, each to be read after the name of the file."""


@dataclass(frozen=True, kw_only=True)
class PictureFile:
    """An image file whose pages are still to be decoded."""

    pages: Iterator[Page]
    """In order; one for most files. Raises `Unreadable` at a page that cannot be decoded."""

    flags: tuple[str, ...] = ()
    """What is wrong with the file although it can be decoded, each to be read after its name."""


def is_picture(head: bytes) -> bool:
    """Whether a file that begins with these bytes (at least `SIGNATURE_BYTES`) is an image file."""
    return _SIGNATURE.match(head) is not None


def open_pictures(content: bytes, *, colour: bool) -> PictureFile:
    """Recognize the format of an image file by its content, and prepare to decode its pages.

    Transparency is dropped, the orientation in the metadata is applied, and values of more than 8 bits are
    scaled from the range that the file states.

    Args:
        content: the whole file.
        colour: decode to BGR; otherwise to gray.

    Raises:
        Unreadable: the content is no picture, or is damaged so that pixels are missing or wrong.
    """
    if content.startswith(_JPEG_SIGNATURE):
        return _open_jpeg(content, colour)
    if content.startswith(PNG_SIGNATURE):
        return _open_png(content, colour)
    if content.startswith(TIFF_SIGNATURES):
        return _open_tiff(content, colour)
    image = _open_with_pillow(content)
    return PictureFile(pages=_pillow_pages(image, colour), flags=_early_end(content, str(image.format)))


def count_pages(content: bytes) -> int:
    """Number of pictures in an image file that are shown one after another; 0 if it is no image file."""
    try:
        if content.startswith(_JPEG_SIGNATURE):
            return 1  # further pictures in it are previews
        if content.startswith(TIFF_SIGNATURES):
            return len(read_tiff_pages(content))
        return len(_shown(_open_with_pillow(content)))
    except Unreadable:
        return 0


def _open_jpeg(content: bytes, colour: bool) -> PictureFile:
    flags: tuple[str, ...] = ()
    jpeg = _decode_jpeg(content, colour)
    if "Premature end of JPEG file" in (jpeg.complaint or ""):
        jpeg = _decode_jpeg(content + _JPEG_END, colour)
        flags += ("lacks its end marker, but no pixels",)
    if jpeg.complaint and EXTRANEOUS_BYTES not in jpeg.complaint:
        raise Unreadable(jpeg.complaint)
    if jpeg.complaint:
        flags += (f"may be damaged: {jpeg.complaint}",)
    if jpeg.pixels.shape[2] == 4:
        image = np.asarray(_decode(content, cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE), np.uint8)
    else:
        image = _upright(jpeg.pixels if colour else jpeg.pixels[..., 0], content)
    return PictureFile(pages=iter([Page(0.0, image)]), flags=flags)


def _decode_jpeg(content: bytes, colour: bool) -> Jpeg:
    try:
        return decode_jpeg(content, colour=colour)
    except ValueError as error:
        raise Unreadable(str(error)) from error


def _upright(image: Image, content: bytes) -> Image:
    """An image turned as the metadata of its JPEG says."""
    try:
        with Pillow.open(io.BytesIO(content), formats=("JPEG", "MPO")) as header:
            orientation = header.getexif().get(_ORIENTATION, 1)
    except Exception:  # metadata of many kinds of damage; the pixels are fine
        return image
    quarters, mirrored = _TURNS.get(orientation, (0, False))
    turned = np.rot90(image, quarters)
    return np.ascontiguousarray(np.fliplr(turned) if mirrored else turned)


def _open_png(content: bytes, colour: bool) -> PictureFile:
    chunks = read_png_chunks(content)
    if chunks.bits < 16 or chunks.animated:
        pages = _pillow_pages(_open_with_pillow(chunks.content), colour)
    else:
        # Pillow reads colours of 16 bits as 8 bits, which hides their range.
        pages = iter([_scaled(_decode_depth(chunks.content), chunks.maximum, colour)])
    return PictureFile(pages=pages, flags=chunks.flags)


def _open_tiff(content: bytes, colour: bool) -> PictureFile:
    pages = read_tiff_pages(content)
    if all(page.ordinary for page in pages):
        try:
            image = _open_with_pillow(content)
        except Unreadable:  # an arrangement of pixels that only libtiff knows
            pass
        else:
            return PictureFile(pages=_pillow_pages(image, colour, [page.index for page in pages]))
    return PictureFile(pages=_deep_tiff_pages(content, pages, colour))


def _deep_tiff_pages(content: bytes, pages: Sequence[TiffPage], colour: bool) -> Iterator[Page]:
    data = np.frombuffer(content, dtype=np.uint8)
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
    for number, page in enumerate(pages):
        try:
            decoded, images = cv2.imdecodemulti(data, flags, range=(page.index, page.index + 1))
        except cv2.error as error:
            raise Unreadable(str(error.err)) from error
        if not decoded or not images:
            raise Unreadable(f"its page {page.index} cannot be decoded as a TIFF of {page.bits} bits")
        values: Any = images[0]
        if values.dtype.kind == "f":
            made = Page(0.0, _from_float(values, colour))
        elif values.dtype == np.uint16:
            # OpenCV shifts 10, 12 and 14 bits to the left end of 16.
            made = _scaled(values >> (16 - page.bits), page.maximum, colour)
            # OpenCV does this for 8 bits only.
            made = made._replace(image=255 - made.image) if page.white_is_zero else made
        elif values.dtype == np.uint8:
            made = Page(0.0, _coloured(values, colour))
        else:
            raise Unreadable(f"its values are of type {values.dtype}; save it with 8 or 16 bits")
        yield made._replace(seconds=number * _PAGE_SECONDS)


def _open_with_pillow(content: bytes) -> Pillow.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as Pillow's about large pictures and odd metadata
            return Pillow.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise Unreadable(known_reason(content) or "it is no image that foldwise can read") from None
    except Pillow.DecompressionBombError:
        raise Unreadable("it has more pixels than foldwise reads") from None
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        raise Unreadable(str(error)) from error


def _shown(image: Pillow.Image) -> range:
    # The first picture of some APNG is only for programs that show no animations.
    first = 1 if getattr(image, "default_image", False) else 0
    count = getattr(image, "n_frames", 1) if image.format in _SEQUENCES else 1
    return range(first, max(count, first + 1))


def _pillow_pages(image: Pillow.Image, colour: bool, indexes: Sequence[int] | None = None) -> Iterator[Page]:
    seconds = 0.0
    for index in _shown(image) if indexes is None else indexes:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.seek(index)
                image.load()
                upright = ImageOps.exif_transpose(image)
                shown = image.info.get("duration", 0) / 1000 or _PAGE_SECONDS
                page = _from_pillow(upright, colour)
        except Unreadable:
            raise
        except Exception as error:  # as above
            raise Unreadable(str(error)) from error
        yield page._replace(seconds=seconds)
        seconds += shown


def _from_pillow(image: Pillow.Image, colour: bool) -> Page:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow scales a PGM of any range to 16 bits.
        values = np.asarray(image).astype(np.uint16)
        return Page(0.0, _coloured((values // 256).astype(np.uint8), colour))
    if not colour and image.mode in {"1", "L", "LA", "La"}:
        return Page(0.0, np.array(image.convert("L")))
    return Page(0.0, _coloured(np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1]), colour))


def _decode_depth(content: bytes) -> Any:
    return _decode(content, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)


def _decode(content: bytes, flag: int) -> Any:
    try:
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flag)
    except cv2.error as error:  # a header that asks for more pixels than OpenCV allows
        raise Unreadable(str(error.err)) from error
    if image is None:
        raise Unreadable("it cannot be decoded")
    return image


def _scaled(values: Any, maximum: int, colour: bool) -> Page:
    """A page of integers brought to 8 bits. If they exceed the stated `maximum`, their range is 0 to 65535."""
    peak = int(values.max(initial=0))
    if peak <= maximum < 65535:
        return Page(0.0, _coloured(np.rint(values * (255.0 / maximum)).astype(np.uint8), colour))
    if 0 < peak < _MIN_16_BIT_PEAK:
        raise Unreadable(
            f"it has 16 bits, but no value above {peak}, so it may hold fewer bits; scale it to 0 to 65535"
        )
    flags: tuple[str, ...] = ()
    if 0 < peak < _MIN_BRIGHT_PEAK:
        flags = (f"has 16 bits, but no value above {peak}; if it is too dark, scale it to 0 to 65535",)
    return Page(0.0, _coloured((values // 256).astype(np.uint8), colour), flags)


def _from_float(values: Any, colour: bool) -> Image:
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if low < 0 or not (high <= 1.0 or 16.0 <= high <= 255.0):
        raise Unreadable(
            f"its values go from {low:g} to {high:g}, which fits neither 0 to 1 nor 0 to 255; save it with "
            "8 or 16 bits"
        )
    return _coloured(np.rint(values * (255.0 if high <= 1.0 else 1.0)).astype(np.uint8), colour)


def _coloured(image: Any, colour: bool) -> Image:
    if colour and image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    elif not colour and image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return np.asarray(image, np.uint8)


def _early_end(content: bytes, name: str) -> tuple[str, ...]:
    """A flag for a GIF that lacks its end, which leaves no other trace; decoders of other formats notice."""
    if name == "GIF" and not content.rstrip(b"\0").endswith(b";"):
        return ("breaks off before its end",)
    return ()
