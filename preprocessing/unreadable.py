"""The error of content that cannot be decoded, and the reasons that the first bytes of a file tell."""

from __future__ import annotations

import re

_HEIC = re.compile(rb"....ftyp(?:hei|hev|mif1|msf1)", re.DOTALL)
"""How pictures of phones begin that are stored in a container of videos."""


class Unreadable(Exception):
    """The reason, to be read after the name of the file and a colon."""


def is_heic(head: bytes) -> bool:
    """Whether a file that begins with these bytes (12 or more) is a HEIC picture."""
    return _HEIC.match(head) is not None


def known_reason(head: bytes) -> str | None:
    """Why a file that begins with these bytes (32 or more, or all) cannot be read; None if they do not tell."""
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; run `git lfs pull`"
    if is_heic(head):
        return "it is a HEIC picture; save it as JPEG or PNG"
    return None
