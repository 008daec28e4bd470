"""Small folds to train in unit tests: a cache of moving shapes, and tasks on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.clip_cache import CacheRecord, ClipCache, Frames, cache_folder, open_cache
from services.clip_cache_writer import CacheWriter
from services.contracts import (
    ANY_CLASS,
    Augmentation,
    AugmentationCounts,
    ComputePlan,
    Economies,
    FoldResult,
    FoldTask,
    TrainingSettings,
)
from services.folds import LeaveOneSubjectOut, make_folds, split_hash
from services.search_space import Hyperparameters
from worker.training.fit import Progress, run_fold
from worker.training.training_device import TrainingDevice

CPU = torch.device("cpu")
FINGERPRINT = "f" * 64
CLASSES = ("right", "down", "brighter")
TINY = TrainingSettings(
    frames=10,
    frame_size=16,
    width=4,
    batch_size=8,
    epochs=8,
    learning_rate=3e-3,
    augmentation=Augmentation(counts={ANY_CLASS: AugmentationCounts(contrast=1)}),
)


def write_cache(
    root: Path,
    *,
    subjects: int,
    clips_of_class: int,
    size: int,
    colour: bool = False,
    dataset: str = "blobs",
    fingerprint: str = FINGERPRINT,
    windows: int = 1,
) -> ClipCache:
    random = np.random.default_rng(0)
    writer = CacheWriter(root, dataset, fingerprint)
    clip_ids = []
    for subject in range(subjects):
        for label in CLASSES:
            for number in range(clips_of_class):
                frames = np.concatenate([_window(label, subject, size, colour, random) for _ in range(windows)])
                clip_ids.append(f"s{subject}/{label}/{number}")
                record = CacheRecord(
                    clip_id=clip_ids[-1],
                    subject=f"s{subject}",
                    label=label,
                    source=clip_ids[-1],
                    frames=tuple(f"{f}.png" for f in range(10)) * windows,
                    detector="none",
                    boxes=(None,) * 10 * windows,
                    confidences=(None,) * 10 * windows,
                    repeated=0,
                    flags=(),
                )
                writer.add(record, frames, 255 - frames)
    settings = {"frame_sampling": "uniform", "windows": windows} if windows > 1 else {}
    writer.finish(clip_ids=clip_ids, classes=CLASSES, skipped={}, settings=settings, tools={}, warnings=())
    return open_cache(cache_folder(root, dataset, fingerprint))


def _window(label: str, subject: int, size: int, colour: bool, random: np.random.Generator) -> Frames:
    clip = random.integers(0, 40, (10, size, size))
    for frame in range(10):
        place = (frame * size // 10 + subject) % size
        if label == "right":
            clip[frame, :, place : place + 3] += 180
        elif label == "down":
            clip[frame, place : place + 3, :] += 180
        else:
            clip[frame, size // 4 : size // 2, size // 4 : size // 2] += 20 * frame
    frames = clip.astype(np.uint8)
    return np.stack([frames, frames // 2, 255 - frames], axis=-1) if colour else frames


def assign(
    cache: ClipCache,
    training: TrainingSettings = TINY,
    *,
    fold: int = 0,
    seed: int = 1,
    stop_when_perfect: bool = False,
    **hyperparameters: Any,
) -> FoldTask:
    folds = make_folds(cache.clips(), LeaveOneSubjectOut())
    return FoldTask(
        study="study",
        trial=0,
        fold=fold,
        fold_name=folds[fold].name,
        folds=len(folds),
        hyperparameters=Hyperparameters.model_validate({"clahe": False, **hyperparameters}),
        training=training,
        economies=Economies(stop_when_perfect=stop_when_perfect),
        compute=ComputePlan(),
        dataset="blobs",
        fingerprint=FINGERPRINT,
        classes=CLASSES,
        test_clips=folds[fold].test_clips,
        split_hash=split_hash(folds),
        seed=seed,
        study_seed=0,
    )


def run(
    assignment: FoldTask,
    cache: ClipCache,
    *,
    device: TrainingDevice | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> FoldResult:
    return run_fold(assignment, cache, device or TrainingDevice(CPU), revision="abc", on_step=on_step)
