"""For how many epochs should a final model train? The median of the folds' best epochs against all epochs.

    python -m benchmarks.final_epochs [--emotions 3] [--seeds 3] [--subjects 16] [--outer 4]

A fold of three clips is perfect by luck after a few epochs. A model that trains only for the median of the
folds' best epochs, rounded up, is therefore trained too little. Foldwise did that once; it now trains such a
model for as many epochs as the folds.

For each seed the program runs Leave-One-Subject-Out with all epochs on a synthetic set of three clips for each
person, and pools the folds at both numbers of epochs. Then it runs a nested cross-validation: for each outer
fold it selects the best of a few configurations on the other people, trains it on all of them, and tests it on
the people of the outer fold after both numbers of epochs. A network does not depend on how many epochs follow,
so one training gives both.

The last line is JSON:
    seeds                   one entry for each seed, with
        per_fold_best       accuracy with each fold at its own best epoch
        median_epochs       median of these epochs, rounded up
        at_median           pooled accuracy after that many epochs
        at_last             pooled accuracy after the last epoch
        nested_selected     mean accuracy of the selected configurations, each fold at its own best epoch
        nested_at_median    accuracy on the outer folds after the median of the best epochs
        nested_at_last      accuracy on the outer folds after the last epoch
    clips, emotions, subjects, outer, epochs, learning_rate, difficulty, width, frame_size, processes
                            the options
    seconds                 duration
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.fold_tasks import benchmark_task
from benchmarks.synthetic_cache import synthetic_cache
from preprocessing.datasets.ckplus import CLASSES
from services.clip_cache import ClipCache, open_cache
from services.contracts import (
    ANY_CLASS,
    Augmentation,
    AugmentationCounts,
    ComputePlan,
    Economies,
    TrainingSettings,
)
from services.folds import HeldOut, LeaveOneSubjectOut, OuterFold, Protocol
from services.search_space import Hyperparameters
from services.seeds import derive_seed
from worker.training.device import choose_device
from worker.training.fit import run_fold
from worker.training.training_device import TrainingDevice

CONFIGURATIONS = (
    Hyperparameters(temporal_size=3),
    Hyperparameters(temporal_size=1, clahe=False),
    Hyperparameters(temporal_size=3, dropout=0.5),
)
"""Those from which the searches select."""

EMOTIONS: dict[int, Sequence[str]] = {3: ("anger", "happy", "surprise"), len(CLASSES): CLASSES}
"""Drawn emotions by their number. A small network learns three, and is far from learning all seven."""


@dataclass(frozen=True, kw_only=True)
class TestedFold:
    """Correct clips of a fold after each epoch."""

    clips: int
    correct: tuple[int, ...]

    @property
    def best_epoch(self) -> int:
        """The first epoch with the most correct clips, from 1."""
        return self.correct.index(max(self.correct)) + 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """A fold to train."""

    cache: Path
    configuration: int
    settings: TrainingSettings
    protocol: Protocol
    fold: int
    seed: int


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--emotions", type=int, choices=sorted(EMOTIONS), default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--subjects", type=int, default=16)
    parser.add_argument("--outer", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--difficulty", type=float, default=0.0)
    parser.add_argument("--width", type=int, default=6)
    parser.add_argument("--frame-size", type=int, default=32)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    started = time.monotonic()
    settings = TrainingSettings(
        width=arguments.width,
        frame_size=arguments.frame_size,
        batch_size=8,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        bn_momentum=0.3,
        augmentation=Augmentation(counts={ANY_CLASS: AugmentationCounts(flip=1)}),
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(arguments.processes, get_context("spawn"), start_process) as pool,
    ):
        cache = small_folds_cache(
            Path(folder),
            arguments.subjects,
            arguments.frame_size,
            arguments.difficulty,
            EMOTIONS[arguments.emotions],
        )
        found = [
            {
                **final_model(pool, cache, settings, arguments.subjects, seed),
                **nested_search(pool, cache, settings, arguments.subjects, arguments.outer, seed),
            }
            for seed in range(arguments.seeds)
        ]
    _print(found)
    clips = 3 * arguments.subjects
    print(
        json.dumps(
            {
                "seeds": found,
                "clips": clips,
                **{name: value for name, value in vars(arguments).items() if name != "seeds"},
                "seconds": round(time.monotonic() - started),
            }
        )
    )


def small_folds_cache(
    folder: Path, subjects: int, frame_size: int, difficulty: float, emotions: Sequence[str]
) -> Path:
    """A cache of three clips of each person, each of another emotion; the folder of its arrays."""
    cache = synthetic_cache(
        folder,
        subjects=subjects,
        frame_size=frame_size,
        clips_per_subject=3,
        classes=emotions,
        difficulty=difficulty,
    )
    return cache.folder


def final_model(
    pool: ProcessPoolExecutor, cache: Path, settings: TrainingSettings, subjects: int, seed: int
) -> dict[str, float]:
    """Leave-One-Subject-Out: accuracies at the folds' best epochs, at their median, and at the last epoch."""
    jobs = [
        Job(
            cache=cache, configuration=0, settings=settings, protocol=LeaveOneSubjectOut(), fold=fold, seed=seed
        )
        for fold in range(subjects)
    ]
    folds = list(pool.map(run_job, jobs))
    epochs = median_epochs(folds)
    return {
        "per_fold_best": per_fold_best(folds),
        "median_epochs": epochs,
        "at_median": accuracy_after(folds, epochs),
        "at_last": accuracy_after(folds, settings.epochs),
    }


def nested_search(
    pool: ProcessPoolExecutor, cache: Path, settings: TrainingSettings, subjects: int, outer: int, seed: int
) -> dict[str, float]:
    """Nested cross-validation, with the selected configuration measured after both numbers of epochs."""
    selected, at_median, measured = [], [], []
    for index in range(outer):
        left_out = OuterFold(k=outer, fold=index)
        inside = subjects - len(range(index, subjects, outer))
        protocol = LeaveOneSubjectOut(outer=left_out)
        searched = [
            list(
                pool.map(
                    run_job,
                    [
                        Job(
                            cache=cache,
                            configuration=configuration,
                            settings=settings,
                            protocol=protocol,
                            fold=fold,
                            seed=seed,
                        )
                        for fold in range(inside)
                    ],
                )
            )
            for configuration in range(len(CONFIGURATIONS))
        ]
        best = max(range(len(searched)), key=lambda n: (per_fold_best(searched[n]), -n))
        held_out = Job(
            cache=cache,
            configuration=best,
            settings=settings,
            protocol=HeldOut(outer=left_out),
            fold=0,
            seed=seed,
        )
        (tested,) = pool.map(run_job, [held_out])
        selected.append(per_fold_best(searched[best]))
        at_median.append(tested.correct[median_epochs(searched[best]) - 1])
        measured.append(tested)
    clips = sum(fold.clips for fold in measured)
    return {
        "nested_selected": round(fmean(selected), 4),
        "nested_at_median": round(sum(at_median) / clips, 4),
        "nested_at_last": accuracy_after(measured, settings.epochs),
    }


def per_fold_best(folds: Sequence[TestedFold]) -> float:
    """Pooled accuracy with each fold at its best epoch."""
    return round(sum(max(fold.correct) for fold in folds) / sum(fold.clips for fold in folds), 4)


def median_epochs(folds: Sequence[TestedFold]) -> int:
    """The median of the folds' best epochs, rounded up."""
    return math.ceil(median(fold.best_epoch for fold in folds))


def accuracy_after(folds: Sequence[TestedFold], epochs: int) -> float:
    """Pooled accuracy after this many epochs; a fold that diverged before repeats its last epoch."""
    correct = sum(fold.correct[min(epochs, len(fold.correct)) - 1] for fold in folds)
    return round(correct / sum(fold.clips for fold in folds), 4)


def run_job(job: Job) -> TestedFold:
    """Train and test a fold with all its epochs."""
    cache = _cache(job.cache)
    task = benchmark_task(
        cache,
        CONFIGURATIONS[job.configuration],
        job.settings,
        ComputePlan(),
        economies=Economies(stop_when_perfect=False),
        fold=job.fold,
        seed=derive_seed("final epochs", job.seed, job.configuration, job.fold),
        study_seed=job.seed,
        protocol=job.protocol,
    )
    outer = job.protocol.outer if isinstance(job.protocol, LeaveOneSubjectOut | HeldOut) else None
    task = task.model_copy(update={"outer": outer})
    result = run_fold(task, cache, _DEVICES[0], revision=None, on_step=lambda _: None)
    label = {clip.clip_id: clip.label for clip in cache.clips()}
    truth = [label[clip] for clip in task.test_clips]
    return TestedFold(
        clips=len(truth),
        correct=tuple(
            sum(t == p for t, p in zip(truth, epoch.predicted, strict=True)) for epoch in result.epochs
        ),
    )


_DEVICES: list[TrainingDevice] = []
_CACHES: dict[Path, ClipCache] = {}


def start_process() -> None:
    """Prepare a process of the pool."""
    torch.set_num_threads(1)
    _DEVICES.append(TrainingDevice(choose_device("cpu")))


def _cache(folder: Path) -> ClipCache:
    if folder not in _CACHES:
        _CACHES[folder] = open_cache(folder)
    return _CACHES[folder]


def _print(found: Sequence[dict[str, float]]) -> None:
    table = Table("", *(f"seed {seed}" for seed in range(len(found))), "mean")
    for name in found[0]:
        values = [one[name] for one in found]
        table.add_row(name.replace("_", " "), *(f"{value:g}" for value in values), f"{fmean(values):.4g}")
    Console().print(table)


if __name__ == "__main__":
    main()
