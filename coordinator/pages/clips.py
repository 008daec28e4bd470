"""Clips of a cache as a browser shows them: ten frames that move, or the middle one."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

from services.clip_cache import ClipCache, Frames, cache_folder, open_cache

FRAME_MS = 120
SIZE = 112
"""Pixels on a side at least; smaller frames are enlarged."""

CACHES_OPEN = 8


@lru_cache(maxsize=CACHES_OPEN)
def opened(root: Path, dataset: str, fingerprint: str) -> ClipCache:
    """A cache, without hashing its files: they are looked at, not trained on.

    Raises:
        CacheMismatch: it is not there, or broken.
    """
    return open_cache(cache_folder(root, dataset, fingerprint), verify=False)


@lru_cache(maxsize=CACHES_OPEN)
def places(cache: ClipCache) -> dict[str, int]:
    """Where in the arrays each clip lies, by id."""
    return {record.clip_id: place for place, record in enumerate(cache.records)}


def picture(cache: ClipCache, place: int, *, still: bool) -> bytes:
    """A clip as WebP: all its frames, over and over, or the one in the middle."""
    frames = [_image(frame) for frame in cache.frames(clahe=False)[place]]
    written = io.BytesIO()
    if still:
        frames[len(frames) // 2].save(written, "WEBP", quality=80)
    else:
        frames[0].save(
            written, "WEBP", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, quality=75
        )
    return written.getvalue()


def _image(frame: Frames) -> Image.Image:
    image = Image.fromarray(frame)
    factor = -(-SIZE // image.width)
    return image if factor == 1 else image.resize((image.width * factor, image.height * factor))
