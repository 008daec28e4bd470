"""The image files of one clip, and their order."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from preprocessing.media_kind import is_image

OnDuplicate = Callable[[Path, Path], None]
"""Called with an unused image and the image of the same frame that is used, in another format."""


def images_of_clip(files: Iterable[Path], on_duplicate: OnDuplicate = lambda _, __: None) -> list[Path]:
    """The images among these files, in natural order: `frame9.png` before `frame10.png`.

    If two images differ only in their format, such as `a.png` and `a.jpg`, the first of them is used.
    """
    images: dict[str, Path] = {}
    for path in files:
        if not is_image(path):
            continue
        if path.stem in images:
            on_duplicate(path, images[path.stem])
        else:
            images[path.stem] = path
    return sorted(images.values(), key=_natural_order)


def _natural_order(path: Path) -> list[tuple[int, bytes]]:
    parts = re.split(r"([0-9]+)", path.name)
    # every second part is a number, so numbers are compared only with numbers
    return [(int(part), b"") if i % 2 else (0, os.fsencode(part)) for i, part in enumerate(parts)]
