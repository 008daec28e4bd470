"""Whether the synthetic sets are good for what they are for: faces are found, and time tells more than a frame.

    python -m benchmarks.synthetic_sets [--subjects 24] [--difficulty 0.5] [--fade 0.8] [--seeds 2]

First each layout and colour is drawn at three difficulties, and every detector looks at every frame. Then one
network is trained twice on the same folds, seeds and settings: on the clips, and on clips whose every frame is
their last, so that all it can learn from is the last frame. Accuracy is pooled over the folds of a
subject-independent cross-validation and is the mean of the last four epochs: no epoch is picked by the clips it
is tested on, and one alone is much chance with so few steps. Seeds are of the networks and of what they are
trained with; the set is the same.

The last line is JSON:
    faces_found             share of frames with exactly one face found, in the worst set and detector;
                            null with --networks-only
    frames                  looked at, all sets together
    accuracy_3d             of the network that sees the clips
    accuracy_last_frame     of the one that sees their last frames
    clips, chance           clips tested; the accuracy of guessing
    folds_3d, folds_last_frame  accuracies of the folds
    subjects, difficulty, fade, width, frame_size, batch_size, epochs, folds, seeds, processes, networks_only
                            as asked for
    seconds                 it took
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console

from benchmarks.synthetic_cache import synthetic_cache
from preprocessing.datasets.registry import read_dataset
from preprocessing.datasets.synthetic import write_synthetic_tree
from preprocessing.faces import DETECTORS
from services.clip_cache import CacheWriter, ClipCache, open_cache
from services.contracts import (
    ANY_CLASS,
    Augmentation,
    AugmentationCounts,
    ComputePlan,
    Economies,
    FoldTask,
    TrainingSettings,
)
from services.folds import KFold, make_folds, split_hash
from services.search_space import Hyperparameters
from services.seeds import sha256_of
from worker.training.device import choose_device, keep_freed_memory
from worker.training.fit import run_fold
from worker.training.training_device import TrainingDevice

SETS = [("ckplus", False), ("ckplus", True), ("oulu-casia", True), ("oulu-casia", False)]
DIFFICULTIES = (0.0, 0.5, 1.0)
LOOKED_AT = 2
"""Subjects of each set that detectors look at."""


LAST_EPOCHS = 4


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What became of the clips of a fold."""

    clips: int
    right: float
    """Clips that were right, mean of the last epochs."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subjects", type=int, default=24)
    parser.add_argument("--difficulty", type=float, default=0.5)
    parser.add_argument("--fade", type=float, default=0.8)
    parser.add_argument("--width", type=int, default=6)
    parser.add_argument("--frame-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--networks-only", action="store_true", help="do not look for faces")
    arguments = parser.parse_args()
    console = Console()
    started = time.monotonic()
    shares, frames = ([], 0) if arguments.networks_only else look_at_faces(console, arguments.fade)
    with tempfile.TemporaryDirectory() as folder:
        whole = synthetic_cache(
            Path(folder),
            subjects=arguments.subjects,
            frame_size=arguments.frame_size,
            difficulty=arguments.difficulty,
            fade=arguments.fade,
        )
        settings = TrainingSettings(
            width=arguments.width,
            frame_size=arguments.frame_size,
            batch_size=arguments.batch_size,
            epochs=arguments.epochs,
            learning_rate=1e-3,
            augmentation=Augmentation(counts={ANY_CLASS: AugmentationCounts(flip=1, rotation=1)}),
        )
        still = with_last_frames_only(whole, Path(folder) / "still")
        tested = cross_validate(
            {"3D-CNN": whole, "last frame": still},
            settings,
            arguments.folds,
            arguments.seeds,
            arguments.processes,
            console,
        )
    moving, last = tested["3D-CNN"], tested["last frame"]
    print(
        json.dumps(
            {
                "faces_found": round(min(shares), 4) if shares else None,
                "frames": frames,
                "accuracy_3d": accuracy(moving),
                "accuracy_last_frame": accuracy(last),
                "folds_3d": [accuracy([fold]) for fold in moving],
                "folds_last_frame": [accuracy([fold]) for fold in last],
                "clips": sum(fold.clips for fold in moving),
                "chance": round(1 / len(whole.manifest.classes), 4),
                **vars(arguments),
                "seconds": round(time.monotonic() - started),
            }
        )
    )


def look_at_faces(console: Console, fade: float) -> tuple[list[float], int]:
    """For each set and detector the share of frames with one face, and the number of frames."""
    shares, total = [], 0
    detectors = [make() for make in DETECTORS.values()]
    for (layout, colour), difficulty in product(SETS, DIFFICULTIES):
        with tempfile.TemporaryDirectory() as folder:
            write_synthetic_tree(
                Path(folder),
                layout=layout,
                colour=colour,
                difficulty=difficulty,
                fade=fade,
                subjects=LOOKED_AT,
                seed=1,
            )
            paths = [p for one in read_dataset(layout, Path(folder)).sequences for p in one.frames]
            images = [np.asarray(cv2.imread(str(path)), np.uint8) for path in paths]
        total += len(images)
        for detector in detectors:
            share = sum(len(detector.detect(image)) == 1 for image in images) / len(images)
            shares.append(share)
            look = "colour" if colour else "gray"
            console.print(
                f"{layout}, {look}, difficulty {difficulty}: {detector.name} {share:.2%}", highlight=False
            )
    return shares, total


def with_last_frames_only(cache: ClipCache, root: Path) -> ClipCache:
    """A cache of the same clips whose every frame is the last one."""
    writer = CacheWriter(root, "last-frame", sha256_of([cache.manifest.fingerprint, "last frame"]))
    plain, clahe = cache.frames(clahe=False), cache.frames(clahe=True)
    for row, record in enumerate(cache.records):
        writer.add(record, *(np.repeat(frames[row][-1:], frames.shape[1], axis=0) for frames in (plain, clahe)))
    writer.finish(
        clip_ids=[record.clip_id for record in cache.records],
        classes=cache.manifest.classes,
        settings=cache.manifest.settings,
        tools=cache.manifest.tools,
        skipped={},
        warnings=(),
    )
    return open_cache(writer.target)


def cross_validate(
    caches: dict[str, ClipCache],
    settings: TrainingSettings,
    k: int,
    seeds: int,
    processes: int,
    console: Console,
) -> dict[str, list[Tested]]:
    """For each cache, by name, every clip is tested once for each seed; folds run side by side."""
    tested: dict[str, list[Tested]] = {name: [] for name in caches}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting = [
            (seed, index, name, pool.submit(run_one, cache.folder, settings, k, index, seed))
            for seed, index, (name, cache) in product(range(seeds), range(k), caches.items())
        ]
        for seed, index, name, future in waiting:
            tested[name].append(future.result())
            share = accuracy(tested[name][-1:])
            console.print(f"{name}, seed {seed}, fold {index}: {share:.1%}", highlight=False)
    return tested


def accuracy(folds: list[Tested]) -> float:
    """The share of all their clips that is right."""
    return round(sum(fold.right for fold in folds) / sum(fold.clips for fold in folds), 4)


def run_one(folder: Path, settings: TrainingSettings, k: int, index: int, seed: int) -> Tested:
    """Train on all folds but one, and test on that."""
    torch.set_num_threads(1)
    device = choose_device(None)
    if device.type == "cpu":
        keep_freed_memory()
    cache = open_cache(folder, verify=False)
    folds = make_folds(cache.clips(), KFold(k=k))
    fold = folds[index]
    label_of = {clip.clip_id: clip.label for clip in cache.clips()}
    task = FoldTask(
        study="synthetic-sets",
        trial=0,
        fold=fold.index,
        fold_name=fold.name,
        folds=len(folds),
        hyperparameters=Hyperparameters(),
        training=settings,
        economies=Economies(stop_when_perfect=False),
        compute=ComputePlan(),
        dataset=cache.manifest.dataset,
        fingerprint=cache.manifest.fingerprint,
        classes=cache.manifest.classes,
        test_clips=fold.test_clips,
        split_hash=split_hash(folds),
        seed=seed,
        study_seed=seed,
    )
    result = run_fold(task, cache, TrainingDevice(device), revision=None, on_step=lambda _: None)
    truth = [label_of[clip] for clip in fold.test_clips]
    right = [
        sum(one == other for one, other in zip(epoch.predicted, truth, strict=True))
        for epoch in result.epochs[-LAST_EPOCHS:]
    ]
    return Tested(clips=len(truth), right=sum(right) / len(right))


if __name__ == "__main__":
    main()
