"""Finds near-identical clips of different subjects: training on one and testing on the other proves nothing."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from services.clip_cache import ClipCache

MIN_CORRELATION = 0.98
"""Correlation from which two clips count as copies. The same video encoded again, brighter, or a frame later
reaches 0.99; synthetic faces of different people in the same pose stay below 0.95."""

_SIDE_PIXELS = 28
_BLOCK_CLIPS = 64


@dataclass(frozen=True, kw_only=True)
class NearCopies:
    """Two near-identical clips of different subjects, in the order of the cache."""

    one: str
    other: str
    subjects: tuple[str, str]
    correlation: float
    """Correlation of the two clips' mean frames, at most 1."""

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.one} and {self.other} are near-identical (correlation {self.correlation:.3f}) but "
            f"belong to subjects {self.subjects[0]} and {self.subjects[1]}"
        )


def find_near_copies(cache: ClipCache) -> tuple[NearCopies, ...]:
    """All pairs of near-identical clips of different subjects, in the order of the cache.

    Each clip is compared by the mean of its frames, reduced to 28 x 28 and normalized to mean 0 and length 1,
    so that brightness, contrast or a shift in time does not hide a copy.
    """
    subjects = np.array([record.subject for record in cache.records])
    pictures = np.concatenate([_pictures(cache, first) for first in range(0, len(subjects), _BLOCK_CLIPS)])
    found = []
    for first in range(0, len(pictures), _BLOCK_CLIPS):
        correlation = pictures[first : first + _BLOCK_CLIPS] @ pictures.T
        foreign = subjects[first : first + _BLOCK_CLIPS, None] != subjects[None, :]
        for row, other in np.argwhere((correlation >= MIN_CORRELATION) & foreign).tolist():
            one = first + row
            if one < other:
                found.append(
                    NearCopies(
                        one=cache.records[one].clip_id,
                        other=cache.records[other].clip_id,
                        subjects=(cache.records[one].subject, cache.records[other].subject),
                        correlation=round(min(1.0, float(correlation[row, other])), 4),
                    )
                )
    return tuple(found)


def _pictures(cache: ClipCache, first: int) -> NDArray[np.float32]:
    """Normalized mean frames of a block of clips, float32, clips x 784."""
    # The memory map is opened again for each block, because its pages count as the memory of the process.
    rows = []
    for clip in cache.frames(clahe=False)[first : first + _BLOCK_CLIPS]:
        mean = clip.mean(axis=0, dtype=np.float32)
        gray = mean if mean.ndim == 2 else mean.mean(axis=2)
        picture = np.asarray(
            cv2.resize(gray, (_SIDE_PIXELS, _SIDE_PIXELS), interpolation=cv2.INTER_AREA), np.float32
        ).ravel()
        picture -= picture.mean()
        length = float(np.linalg.norm(picture))
        rows.append(picture / length if length > 1.0 else np.zeros_like(picture))
    return np.stack(rows)
