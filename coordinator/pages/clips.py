"""Clips of a cache as pictures for a browser: all frames as an animation, or the middle frame."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

from services.clip_cache import ClipCache, Frames, cache_folder, open_cache

FRAME_MS = 120
MIN_SIDE = 112
"""Minimum side length of a picture in pixels; smaller frames are enlarged by a whole factor."""

MAX_OPEN_CACHES = 8


@lru_cache(maxsize=MAX_OPEN_CACHES)
def load_cache(root: Path, dataset: str, fingerprint: str) -> ClipCache:
    """Open a cache without hashing its files, because they are only shown, not trained on.

    Raises:
        CacheMismatch: the cache is missing or broken.
    """
    return open_cache(cache_folder(root, dataset, fingerprint), verify=False)


@lru_cache(maxsize=MAX_OPEN_CACHES)
def clip_indices(cache: ClipCache) -> dict[str, int]:
    """The index of each clip in the cache's arrays, by clip id."""
    return {record.clip_id: index for index, record in enumerate(cache.records)}


def clip_picture(cache: ClipCache, index: int, *, still: bool) -> bytes:
    """A clip as WebP: an endless animation of all frames, or the middle frame."""
    frames = [_image(frame) for frame in cache.frames(clahe=False)[index]]
    output = io.BytesIO()
    if still:
        frames[len(frames) // 2].save(output, "WEBP", quality=80)
    else:
        frames[0].save(
            output, "WEBP", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, quality=75
        )
    return output.getvalue()


def _image(frame: Frames) -> Image.Image:
    image = Image.fromarray(frame)
    factor = -(-MIN_SIDE // image.width)
    return image if factor == 1 else image.resize((image.width * factor, image.height * factor))
