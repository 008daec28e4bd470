"""A small clip cache of random frames, for studies whose folds nobody trains or that train in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
) -> CacheManifest:
    """Write one clip of each class for each subject: `frames` x 16 x 16, uint8, named SUBJECT_CLASS."""
    writer = CacheWriter(root, dataset, fingerprint)
    rng = np.random.default_rng(0)
    clip_ids = []
    for subject in range(subjects):
        for label in classes:
            clip_id = f"S{subject:03d}_{label}"
            clip = rng.integers(0, 256, size=(frames, 16, 16), dtype=np.uint8)
            unknown = (None,) * (frames - 1)
            record = CacheRecord(
                clip_id=clip_id,
                subject=f"S{subject:03d}",
                label=label,
                source=clip_id,
                frames=tuple(f"{frame + 1}.png" for frame in range(frames)),
                detector="yunet",
                boxes=((0.0, 0.0, 16.0, 16.0), *unknown),
                confidences=(0.9, *unknown),
                repeated=0,
                flags=(),
            )
            writer.add(record, clip, clip)
            clip_ids.append(clip_id)
    return writer.finish(
        clip_ids=clip_ids, classes=tuple(classes), settings={}, tools={}, skipped={}, warnings=()
    )
