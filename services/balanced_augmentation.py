"""Augmentation that makes the classes of any set about equally large, as the paper does it for CK+."""

from __future__ import annotations

from collections.abc import Mapping

from services.contracts.training import Augmentation, AugmentationCounts

LARGEST_CLASS_FACTOR = 3
"""Clips that one of the largest class becomes, itself included: the paper's number for CK+ (section 4.1)."""

MAX_FACTOR = 20
"""Limit for the rarest classes: more copies of the same few clips show nothing new."""

MAX_CONTRAST = 4
"""Contrast copies of a clip; the paper prefers rotations, and has at most this many."""


def balance(class_counts: Mapping[str, int]) -> Augmentation:
    """Copies for each class, so that it grows to about three times the largest class.

    A clip of a class with n clips becomes 3 m / n clips, rounded, where m is the size of the largest class. The
    first copy is the flip; of the others half are rotations and half have another contrast, but at most four.

    Args:
        class_counts: clips of each class; a class without clips gets no copies.
    """
    target = LARGEST_CLASS_FACTOR * max(class_counts.values(), default=0)
    return Augmentation(
        counts={
            name: _copies(min(MAX_FACTOR, max(LARGEST_CLASS_FACTOR, round(target / clips))) - 1)
            for name, clips in class_counts.items()
            if clips
        }
    )


def _copies(number: int) -> AugmentationCounts:
    random = number - 1
    contrast = min(MAX_CONTRAST, random // 2)
    return AugmentationCounts(flip=1, rotation=random - contrast, contrast=contrast)
