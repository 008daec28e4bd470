"""A fold of a cache to train, the operations that it needs, and the rate that its device can reach."""

from __future__ import annotations

import time

import torch

from services.clip_cache import ClipCache
from services.contracts import ComputePlan, Economies, FoldTask, Precision, TrainingSettings
from services.folds import LeaveOneSubjectOut, Protocol, make_folds, split_hash
from services.model_config import ModelConfig
from services.search_space import Hyperparameters
from worker.training.costs import training_flops
from worker.training.device import synchronize
from worker.training.model import build_model
from worker.training.precision import arithmetic


def benchmark_task(
    cache: ClipCache,
    hyperparameters: Hyperparameters,
    training: TrainingSettings,
    plan: ComputePlan,
    *,
    economies: Economies,
    fold: int = 0,
    seed: int = 0,
    study_seed: int = 0,
    protocol: Protocol = LeaveOneSubjectOut(),  # noqa: B008 - frozen
) -> FoldTask:
    """A fold of a cache; an index beyond the last fold starts again with the first."""
    folds = make_folds(cache.clips(), protocol)
    chosen = folds[fold % len(folds)]
    return FoldTask(
        study="benchmark",
        trial=0,
        fold=chosen.index,
        fold_name=chosen.name,
        folds=len(folds),
        hyperparameters=hyperparameters,
        training=training,
        economies=economies,
        compute=plan,
        dataset=cache.manifest.dataset,
        fingerprint=cache.manifest.fingerprint,
        classes=cache.manifest.classes,
        test_clips=chosen.test_clips,
        split_hash=split_hash(folds),
        seed=seed,
        study_seed=study_seed,
    )


def useful_flops(task: FoldTask) -> int:
    """Operations that a gray clip needs, forward and backward: one channel, no taps on padding."""
    with torch.device("meta"):
        model = build_model(ModelConfig.of_task(task))
    return training_flops(model, channels=1, count_padding=False)


def matrix_product_rate(device: torch.device, precision: Precision, *, size: int) -> float:
    """Operations per second of a large matrix product in a precision, the best of eight."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    with arithmetic(precision):
        for _ in range(10):
            synchronize(device)
            started = time.perf_counter()
            a @ b
            synchronize(device)
            seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[2:])
