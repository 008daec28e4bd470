"""Which files are images, and the order of those of one clip."""

from __future__ import annotations

import os
import re
from pathlib import Path

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")


def natural_order(path: Path) -> list[tuple[int, bytes]]:
    """Sorts files by their names, with numbers as numbers: `frame9.png` before `frame10.png`."""
    parts = re.split(r"([0-9]+)", path.name)
    # digits stand at every second place, so numbers are compared with numbers only
    return [(int(part), b"") if i % 2 else (0, os.fsencode(part)) for i, part in enumerate(parts)]
