"""A clip cache of synthetic faces for benchmarks, made as a user would make one."""

from __future__ import annotations

import os
from pathlib import Path

from preprocessing.clips import ClipSettings
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.job import preprocess
from services.clip_cache import ClipCache, open_cache


def synthetic_cache(
    folder: Path, *, subjects: int, frame_size: int, difficulty: float = 0.5, seed: int = 0
) -> ClipCache:
    """Faces of seven emotions, one sequence of each per subject, as a CK+ tree and through preprocessing."""
    tree = folder / "tree"
    write_ckplus_tree(
        tree, subjects=subjects, clips_per_class=1, seed=seed, difficulty=difficulty, progress=lambda *_: None
    )
    outcome = preprocess(
        "ckplus",
        tree,
        folder / "caches",
        settings=ClipSettings(frames=10, frame_size=frame_size, detector="yunet"),
        processes=os.cpu_count() or 1,
        report=lambda *_: None,
    )
    return open_cache(outcome.folder)
