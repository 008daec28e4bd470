"""The image files of one clip, and their order."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")


OnDuplicate = Callable[[Path, Path], None]
"""Called with an image that is not used, and the one of the same frame in another format that is."""


def images_of_clip(files: Iterable[Path], on_duplicate: OnDuplicate = lambda _, __: None) -> list[Path]:
    """Those of these files that are frames, ordered by their names with numbers as numbers.

    `frame9.png` stands before `frame10.png`; of `a.png` and `a.jpg` the first is used.
    """
    images: dict[str, Path] = {}
    for path in files:
        if path.suffix.casefold() not in IMAGES:
            continue
        if path.stem in images:
            on_duplicate(path, images[path.stem])
        else:
            images[path.stem] = path
    return sorted(images.values(), key=_natural_order)


def _natural_order(path: Path) -> list[tuple[int, bytes]]:
    parts = re.split(r"([0-9]+)", path.name)
    # digits stand at every second place, so numbers are compared with numbers only
    return [(int(part), b"") if i % 2 else (0, os.fsencode(part)) for i, part in enumerate(parts)]
