"""A small clip cache of random frames, for studies whose folds nobody trains or that train in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from services.clip_cache import CacheManifest, CacheRecord
from services.clip_cache_writer import CacheWriter

CLASSES = ("anger", "happy")
FINGERPRINT = "f" * 64


def write_tiny_cache(
    root: Path,
    *,
    dataset: str = "tiny",
    subjects: int = 5,
    classes: Sequence[str] = CLASSES,
    frames: int = 2,
    fingerprint: str = FINGERPRINT,
    settings: Mapping[str, Any] | None = None,
) -> CacheManifest:
    """Write one clip of each class for each subject: `frames` x 16 x 16, uint8, named SUBJECT_CLASS."""
    subjects_and_labels = [(f"S{subject:03d}", label) for subject in range(subjects) for label in classes]
    return write_clips(
        root,
        [(f"{subject}_{label}", subject, label) for subject, label in subjects_and_labels],
        dataset=dataset,
        classes=classes,
        frames=frames,
        fingerprint=fingerprint,
        settings=settings,
    )


def write_clips(
    root: Path,
    clips: Sequence[tuple[str, str, str]],
    *,
    dataset: str,
    classes: Sequence[str],
    frames: int = 2,
    fingerprint: str = FINGERPRINT,
    settings: Mapping[str, Any] | None = None,
    part_of: Mapping[str, str] | None = None,
) -> CacheManifest:
    """Write a random clip for each (id, subject, label): `frames` x 16 x 16, uint8.

    `part_of` gives the part of a split that each subject is in.
    """
    writer = CacheWriter(root, dataset, fingerprint)
    rng = np.random.default_rng(0)
    for clip_id, subject, label in clips:
        clip = rng.integers(0, 256, size=(frames, 16, 16), dtype=np.uint8)
        unknown = (None,) * (frames - 1)
        record = CacheRecord(
            clip_id=clip_id,
            subject=subject,
            label=label,
            source=clip_id,
            frames=tuple(f"{frame + 1}.png" for frame in range(frames)),
            detector="yunet",
            boxes=((0.0, 0.0, 16.0, 16.0), *unknown),
            confidences=(0.9, *unknown),
            repeated=0,
            flags=(),
            **({} if part_of is None else {"split": part_of[subject]}),
        )
        writer.add(record, clip, clip)
    return writer.finish(
        clip_ids=[clip_id for clip_id, _, _ in clips],
        classes=tuple(classes),
        settings=dict(settings or {}),
        tools={},
        skipped={},
        warnings=(),
    )
