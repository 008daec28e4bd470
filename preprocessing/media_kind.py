"""Tells images from videos by the content of a file; a suffix decides only what content need not."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from preprocessing.datasets.tree import raise_if_disk_failed
from preprocessing.pictures import SIGNATURE_BYTES, count_pages, is_picture
from preprocessing.unreadable import is_heic
from preprocessing.video_packets import is_video

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".flv", ".wmv", ".asf"),
    *(".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".ogv", ".mxf"),
)

_ONE_PAGE = (".jpg", ".jpeg", ".bmp", ".pgm", ".ppm")
"""Suffixes of image files that are not opened to count their pages."""


class MediaKind(StrEnum):
    """What a file is."""

    IMAGE = "image"
    """An image file with one page."""

    PAGES = "pages"
    """An image file with several pages, such as an animation: it is read like a video."""

    VIDEO = "video"


def media_kind(path: Path) -> MediaKind | None:
    """What a file is; None if it is neither an image nor a video.

    A file with a usual suffix of videos or images counts as one even if it is damaged, so that the damage is
    reported when it is read.

    Raises:
        OSError: the disk failed, see `raise_if_disk_failed`.
    """
    suffix = path.suffix.casefold()
    if suffix in VIDEO_SUFFIXES:
        return MediaKind.VIDEO
    if suffix in _ONE_PAGE:
        return MediaKind.IMAGE
    return _kind_of_content(path) or (MediaKind.IMAGE if suffix in IMAGE_SUFFIXES else None)


def is_image(path: Path) -> bool:
    """Whether a file is an image of one or several pages, by its usual suffix or its content.

    Raises:
        OSError: as for `media_kind`.
    """
    if path.suffix.casefold() in IMAGE_SUFFIXES:
        return True
    if path.suffix.casefold() in VIDEO_SUFFIXES:
        return False
    return media_kind(path) in {MediaKind.IMAGE, MediaKind.PAGES}


def _kind_of_content(path: Path) -> MediaKind | None:
    try:
        with path.open("rb") as file:
            head = file.read(SIGNATURE_BYTES)
        if is_picture(head):
            return MediaKind.PAGES if count_pages(path.read_bytes()) > 1 else MediaKind.IMAGE
    except OSError as error:
        raise_if_disk_failed(path, error)
        return None
    if is_heic(head):
        return MediaKind.IMAGE  # it cannot be read, which is reported when it is
    return MediaKind.VIDEO if is_video(path) else None
