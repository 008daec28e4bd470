"""A clip cache of synthetic faces for benchmarks, made with the same functions that a user's commands call."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from preprocessing.clips import ClipSettings
from preprocessing.datasets.ckplus import CLASSES, IMAGES, LABEL_OF_CODE, LABELS
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.job import preprocess
from services.clip_cache import ClipCache, open_cache


def synthetic_cache(
    folder: Path,
    *,
    subjects: int,
    frame_size: int,
    clips_per_subject: int = len(CLASSES),
    classes: Sequence[str] = CLASSES,
    difficulty: float = 0.5,
    fade: float = 0.0,
    seed: int = 0,
) -> ClipCache:
    """Draw faces as a CK+ tree and preprocess them.

    Args:
        folder: folder for the tree and the caches.
        subjects: number of subjects.
        frame_size: height and width of a clip in pixels.
        clips_per_subject: sequences of a subject, each of another emotion, chosen at random. The real CK+ has
            327 sequences of 118 subjects, which is nearly three for each.
        classes: the emotions to draw.
        difficulty: difficulty of the faces, from 0 (easy) to 1 (hard).
        fade: fading of the expression in the last frame, from 0 (none) to 1 (all gone).
        seed: seed of the faces.
    """
    tree = folder / "tree"
    write_ckplus_tree(
        tree,
        subjects=subjects,
        clips_per_class=1,
        seed=seed,
        difficulty=difficulty,
        fade=fade,
        progress=lambda *_: None,
    )
    _keep(tree, clips_per_subject, classes)
    outcome = preprocess(
        "ckplus",
        tree,
        folder / "caches",
        settings=ClipSettings(frames=10, frame_size=frame_size, detector="yunet"),
        processes=os.cpu_count() or 1,
        report=lambda *_: None,
    )
    return open_cache(outcome.folder)


def _keep(tree: Path, sequences: int, classes: Sequence[str]) -> None:
    # A subject's emotions are in random order, so its first sequences are a random choice.
    kept: dict[str, int] = {}
    for label in sorted((tree / LABELS).glob("*/*/*_emotion.txt")):
        subject = label.parent.parent.name
        wanted = LABEL_OF_CODE[int(float(label.read_text()))] in classes
        kept[subject] = kept.get(subject, 0) + wanted
        if not wanted or kept[subject] > sequences:
            shutil.rmtree(label.parent)
            shutil.rmtree(tree / IMAGES / subject / label.parent.name)
