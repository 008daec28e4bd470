"""Do the synthetic sets serve their purpose? Detectors must find the faces, and motion must carry information.

    python -m benchmarks.synthetic_sets [--subjects 24] [--difficulty 0.5] [--fade 0.8] [--seeds 2]

First the program draws each layout and colour at three difficulties and runs every detector on every frame.
Then it trains one network twice with the same folds, seeds and settings: on the clips, and on clips in which
every frame is the last one, so that the network can only learn from the last frame. The accuracy is pooled over
the folds of a subject-independent cross-validation. It is the mean of the last four epochs, because selecting
an epoch by its test clips is optimistic, and a single epoch varies much after few steps. The seeds change the
networks and their training, not the set.

The last line is JSON:
    faces_found             share of frames with exactly one detected face, for the worst set and detector;
                            null with --networks-only
    frames                  number of frames in all sets
    accuracy_3d             accuracy of the network that sees the clips
    accuracy_last_frame     accuracy of the network that sees only the last frames
    clips, chance           number of tested clips; accuracy of guessing
    folds_3d, folds_last_frame  accuracies of the folds
    subjects, difficulty, fade, width, frame_size, batch_size, epochs, folds, seeds, processes, networks_only
                            the options
    seconds                 duration
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

from benchmarks.fold_tasks import benchmark_task
from benchmarks.synthetic_cache import synthetic_cache
from preprocessing.datasets.registry import read_dataset
from preprocessing.datasets.synthetic import write_synthetic_tree
from preprocessing.faces import DETECTORS
from services.clip_cache import ClipCache, open_cache
from services.clip_cache_writer import CacheWriter
from services.contracts import (
    ANY_CLASS,
    Augmentation,
    AugmentationCounts,
    ComputePlan,
    Economies,
    TrainingSettings,
)
from services.folds import KFold
from services.search_space import Hyperparameters
from services.seeds import sha256_of
from worker.training.device import choose_device, keep_freed_memory
from worker.training.fit import run_fold
from worker.training.training_device import TrainingDevice

SETS = [("ckplus", False), ("ckplus", True), ("oulu-casia", True), ("oulu-casia", False)]
DIFFICULTIES = (0.0, 0.5, 1.0)
DETECTION_SUBJECTS = 2
"""Number of subjects in each set that the detectors examine."""

LAST_EPOCHS = 4
"""Number of last epochs over which the accuracy is averaged."""


@dataclass(frozen=True, kw_only=True)
class Tested:
    """The test result of a fold."""

    clips: int
    correct: float
    """Number of correct clips, mean over the last epochs."""


def main() -> None:
    """Measure and print the results."""
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
    parser.add_argument("--networks-only", action="store_true", help="skip the detectors")
    arguments = parser.parse_args()
    console = Console()
    started = time.monotonic()
    shares, frames = ([], 0) if arguments.networks_only else detect_faces(console, arguments.fade)
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


def detect_faces(console: Console, fade: float) -> tuple[list[float], int]:
    """Return the share of frames with one face for each set and detector, and the number of frames."""
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
                subjects=DETECTION_SUBJECTS,
                seed=1,
            )
            paths = [p for one in read_dataset(layout, Path(folder)).sequences for p in one.frames]
            images = [np.asarray(cv2.imread(str(path)), np.uint8) for path in paths]
        total += len(images)
        for detector in detectors:
            share = sum(len(detector.detect(image)) == 1 for image in images) / len(images)
            shares.append(share)
            kind = "colour" if colour else "gray"
            console.print(
                f"{layout}, {kind}, difficulty {difficulty}: {detector.name} found one face in {share:.2%} "
                "of the frames",
                highlight=False,
            )
    return shares, total


def with_last_frames_only(cache: ClipCache, root: Path) -> ClipCache:
    """Write a cache of the same clips in which every frame is the last one."""
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
    """Test every clip of each cache once per seed; folds run in parallel.

    Args:
        caches: the caches by name.
        settings: sizes, epochs and augmentation.
        k: number of folds.
        seeds: number of seeds.
        processes: number of folds that run at the same time.
        console: where to print each fold's accuracy.
    """
    tested: dict[str, list[Tested]] = {name: [] for name in caches}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        submitted = [
            (seed, index, name, pool.submit(run_one, cache.folder, settings, k, index, seed))
            for seed, index, (name, cache) in product(range(seeds), range(k), caches.items())
        ]
        for seed, index, name, future in submitted:
            tested[name].append(future.result())
            share = accuracy(tested[name][-1:])
            console.print(f"{name}, seed {seed}, fold {index}: {share:.1%}", highlight=False)
    return tested


def accuracy(folds: list[Tested]) -> float:
    """Share of correct clips over all these folds."""
    return round(sum(fold.correct for fold in folds) / sum(fold.clips for fold in folds), 4)


def run_one(folder: Path, settings: TrainingSettings, k: int, index: int, seed: int) -> Tested:
    """Train on all folds except one, and test on that one.

    Args:
        folder: folder of the clip cache.
        settings: sizes, epochs and augmentation.
        k: number of folds.
        index: index of the fold to test on.
        seed: seed of the training.
    """
    torch.set_num_threads(1)
    device = choose_device(None)
    if device.type == "cpu":
        keep_freed_memory()
    cache = open_cache(folder, verify=False)
    label_of = {clip.clip_id: clip.label for clip in cache.clips()}
    task = benchmark_task(
        cache,
        Hyperparameters(),
        settings,
        ComputePlan(),
        economies=Economies(stop_when_perfect=False),
        fold=index,
        seed=seed,
        study_seed=seed,
        protocol=KFold(k=k),
    )
    result = run_fold(task, cache, TrainingDevice(device), revision=None, on_step=lambda _: None)
    truth = [label_of[clip] for clip in task.test_clips]
    correct = [
        sum(predicted == label for predicted, label in zip(epoch.predicted, truth, strict=True))
        for epoch in result.epochs[-LAST_EPOCHS:]
    ]
    return Tested(clips=len(truth), correct=sum(correct) / len(correct))


if __name__ == "__main__":
    main()
