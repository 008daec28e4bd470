"""foldwise's fold compared with the loop of a careful researcher, on the same clips, folds, seeds and epochs.

    python -m benchmarks.training [--width 16] [--frame-size 56] [--seeds 3] [--device cuda:0 --paper-size]

The baseline (`benchmarks/naive_training.py`) has a DataLoader with workers, OpenCV augmentation of each clip as
it is loaded, eager fp32 (on a GPU with TF32 convolutions, PyTorch's default), three channels, all kernel taps
and all epochs. foldwise runs `worker.training.fit.run_fold`, as a worker does, in each compute plan that passes
its soundness check on the device. By default an epoch is as long as that of CK+ in the paper (about 1,700
clips, three test clips per subject), with the paper's batch size and number of epochs.

Each side has its own process. The speed is measured in rounds, a few steps of each side in turn; then both
train whole folds, foldwise in its fastest fp32 plan and in the fastest plan of all.

The last line is JSON:
    clips_per_s_ratio_fp32  training clips per second in the best fp32 plan, divided by the baseline's
    clips_per_s_ratio       the same for the best sound plan, which is `best_plan`
    fold_time_ratio_fp32    the baseline's seconds for a whole fold, divided by ours in the best fp32 plan with
                            all economies; geometric mean over seeds
    fold_time_ratio         the same for the best sound plan
    peak_share              useful operations per second in the best fp32 plan, divided by those of a large fp32
                            matrix product
    mfu                     the same for the best plan and a product in its precision
    naive_accuracy, our_accuracy_fp32, our_accuracy  accuracy of the best epoch, mean over seeds
    epochs, our_epochs      epochs of the baseline's folds; of ours in fp32, which stop early
    seeds, width, frame_size, device, threads, torch
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.fold_tasks import benchmark_task, matrix_product_rate, useful_flops
from benchmarks.naive_training import run_naive_fold
from benchmarks.synthetic_cache import synthetic_cache
from services.clip_cache import open_cache
from services.contracts import ComputePlan, Economies, FoldTask, TrainingSettings
from services.errors import FoldwiseError, PlanNotSound
from services.presets import CKPLUS_AUGMENTATION
from services.scores import best_epoch
from services.search_space import Hyperparameters
from worker.training.device import choose_device, device_name, keep_freed_memory, synchronize
from worker.training.fit import Progress, run_fold
from worker.training.precision import possible_plans
from worker.training.training_device import TrainingDevice

FP32 = ComputePlan()

Fold = tuple[float, float, int]
"""Seconds, accuracy of the best epoch, epochs run."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The data and settings that every process of the benchmark uses."""

    cache: Path
    device: str
    hyperparameters: Hyperparameters
    training: TrainingSettings
    loader_workers: int

    def task(self, plan: ComputePlan, seed: int) -> FoldTask:
        """A fold of the cache; each seed leaves out the next subject."""
        return benchmark_task(
            open_cache(self.cache, verify=False),
            self.hyperparameters,
            self.training,
            plan,
            economies=Economies(),
            fold=seed,
            seed=seed,
        )

    def truth(self, task: FoldTask) -> list[int]:
        """Labels of a task's test clips."""
        label = {clip.clip_id: clip.label for clip in open_cache(self.cache, verify=False).clips()}
        return [label[clip_id] for clip_id in task.test_clips]


class EnoughSteps(Exception):
    """Raised to end a fold when enough steps are timed."""


# --- In each process --------------------------------------------------------------------------------------

_devices: dict[str, TrainingDevice] = {}


def naive_steps(bench: Bench, steps: int) -> list[float]:
    """Seconds of each full step of the baseline, without the first two."""
    ticks: list[float] = []
    task = bench.task(FP32, 0)
    device = choose_device(bench.device)

    def tick() -> None:
        synchronize(device)
        ticks.append(time.perf_counter())

    run_naive_fold(
        open_cache(bench.cache, verify=False),
        task.test_clips,
        bench.hyperparameters,
        bench.training,
        seed=0,
        device=device,
        loader_workers=bench.loader_workers,
        tf32=device.type == "cuda",
        max_steps=steps + 2,
        on_step=tick,
    )
    return _differences(ticks)


def our_steps(bench: Bench, plan: ComputePlan, steps: int) -> list[float]:
    """Seconds of each full step of foldwise, without the first two.

    Raises:
        PlanNotSound: the plan fails its soundness check on this device.
        FoldwiseError: the fold has too few steps.
    """
    ticks: list[float] = []

    def tick(_: Progress) -> None:
        synchronize(_training_device(bench).torch_device)
        ticks.append(time.perf_counter())
        if len(ticks) == steps + 2:
            raise EnoughSteps

    try:
        _run_ours(bench, plan, 0, tick)
    except EnoughSteps:
        return _differences(ticks)
    raise FoldwiseError(f"the fold has fewer than {steps + 2} steps; give more --subjects")


def naive_fold(bench: Bench, seed: int) -> Fold:
    """Seconds, best-epoch accuracy and number of epochs of a whole fold of the baseline."""
    task = bench.task(FP32, seed)
    started = time.perf_counter()
    result = run_naive_fold(
        open_cache(bench.cache, verify=False),
        task.test_clips,
        bench.hyperparameters,
        bench.training,
        seed=seed,
        device=choose_device(bench.device),
        loader_workers=bench.loader_workers,
        tf32=bench.device != "cpu",
    )
    seconds = time.perf_counter() - started
    truth = bench.truth(task)
    return seconds, best_epoch(truth, result.predicted)[1] / len(truth), len(result.predicted)


def our_fold(bench: Bench, plan: ComputePlan, seed: int) -> Fold:
    """Seconds, best-epoch accuracy and number of epochs of a whole fold with all economies.

    The process is warm: it has loaded the clips and checked the plan.
    """
    started = time.perf_counter()
    predicted = _run_ours(bench, plan, seed, lambda _: None)
    seconds = time.perf_counter() - started
    truth = bench.truth(bench.task(plan, seed))
    return seconds, best_epoch(truth, predicted)[1] / len(truth), len(predicted)


def matrix_product(bench: Bench, plan: ComputePlan) -> float:
    """Operations per second of a large matrix product in a plan's precision."""
    device = choose_device(bench.device)
    size = 8192 if device.type == "cuda" else 3072
    return matrix_product_rate(device, plan.precision, size=size)


def _run_ours(
    bench: Bench, plan: ComputePlan, seed: int, tick: Callable[[Progress], None]
) -> list[tuple[int, ...]]:
    task, device = bench.task(plan, seed), _training_device(bench)
    cache = open_cache(bench.cache, verify=False)
    result = run_fold(task, cache, device, revision=None, on_step=tick)
    return [epoch.predicted for epoch in result.epochs]


def _training_device(bench: Bench) -> TrainingDevice:
    if bench.device not in _devices:
        if choose_device(bench.device).type == "cpu":
            keep_freed_memory()
        _devices[bench.device] = TrainingDevice(choose_device(bench.device))
    return _devices[bench.device]


def _differences(ticks: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(ticks[1:])]


# --- The benchmark ----------------------------------------------------------------------------------------


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--frame-size", type=int, default=56)
    parser.add_argument("--paper-size", action="store_true", help="width 64 and clips of 112 x 112")
    parser.add_argument("--subjects", type=int, default=80)
    parser.add_argument("--clips-per-subject", type=int, default=3)
    parser.add_argument("--difficulty", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="steps of each side per round")
    parser.add_argument("--loader-workers", type=int, default=2)
    parser.add_argument("--device", default=None)
    arguments = parser.parse_args()
    if arguments.paper_size:
        arguments.width, arguments.frame_size = 64, 112
    with tempfile.TemporaryDirectory() as folder:
        cache = synthetic_cache(
            Path(folder),
            subjects=arguments.subjects,
            clips_per_subject=arguments.clips_per_subject,
            frame_size=arguments.frame_size,
            difficulty=arguments.difficulty,
        )
        bench = Bench(
            cache=cache.folder,
            device=str(choose_device(arguments.device)),
            hyperparameters=Hyperparameters(),
            training=TrainingSettings(
                width=arguments.width,
                frame_size=arguments.frame_size,
                epochs=arguments.epochs,
                learning_rate=arguments.learning_rate,
                augmentation=CKPLUS_AUGMENTATION,
            ),
            loader_workers=arguments.loader_workers,
        )
        _compare(bench, seeds=arguments.seeds, rounds=arguments.rounds, steps=arguments.steps)


def _compare(bench: Bench, *, seeds: int, rounds: int, steps: int) -> None:
    console = Console()
    plans = list(possible_plans(choose_device(bench.device)))
    context = get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=context) as naive,
        ProcessPoolExecutor(1, mp_context=context) as ours,
    ):
        step_seconds: dict[ComputePlan | None, list[float]] = {None: []}
        peaks: dict[str, list[float]] = {}
        for number in range(rounds):
            step_seconds[None] += naive.submit(naive_steps, bench, steps).result()
            for plan in [*plans]:
                try:
                    seconds = ours.submit(our_steps, bench, plan, steps).result()
                except PlanNotSound as error:
                    console.print(error.message)
                    plans.remove(plan)
                    continue
                step_seconds.setdefault(plan, []).extend(seconds)
                peaks.setdefault(plan.precision, []).append(ours.submit(matrix_product, bench, plan).result())
            console.print(f"round {number + 1}/{rounds}", highlight=False)

        batch = bench.training.batch_size
        rate = {plan: batch / statistics.median(seconds) for plan, seconds in step_seconds.items()}
        best = max(plans, key=lambda plan: rate[plan])
        best_fp32 = max((p for p in plans if p.precision == "fp32"), key=lambda plan: rate[plan])
        console.print(_speed_table(step_seconds, rate))

        folds: dict[str, list[Fold]] = {"naive": [], "best fp32": [], "best": []}
        for seed in range(seeds):
            folds["naive"].append(naive.submit(naive_fold, bench, seed).result())
            folds["best fp32"].append(ours.submit(our_fold, bench, best_fp32, seed).result())
            folds["best"].append(ours.submit(our_fold, bench, best, seed).result())
            times = ", ".join(f"{name} {done[-1][0]:.1f} s" for name, done in folds.items())
            console.print(f"fold {seed}: {times}", highlight=False)
    flops = useful_flops(bench.task(FP32, 0))
    print(
        json.dumps(
            {
                "clips_per_s_ratio_fp32": round(rate[best_fp32] / rate[None], 2),
                "clips_per_s_ratio": round(rate[best] / rate[None], 2),
                "best_plan": _name(best),
                "best_fp32_plan": _name(best_fp32),
                "fold_time_ratio_fp32": _time_ratio(folds["naive"], folds["best fp32"]),
                "fold_time_ratio": _time_ratio(folds["naive"], folds["best"]),
                "peak_share": round(flops * rate[best_fp32] / max(peaks["fp32"]), 2),
                "mfu": round(flops * rate[best] / max(peaks[best.precision]), 2),
                "naive_accuracy": _accuracy(folds["naive"]),
                "our_accuracy_fp32": _accuracy(folds["best fp32"]),
                "our_accuracy": _accuracy(folds["best"]),
                "epochs": bench.training.epochs,
                "our_epochs": [epochs for _, _, epochs in folds["best fp32"]],
                "seeds": seeds,
                "width": bench.training.width,
                "frame_size": bench.training.frame_size,
                "device": device_name(choose_device(bench.device)),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
    )


def _time_ratio(theirs: list[Fold], ours: list[Fold]) -> float | None:
    ratios = [a[0] / b[0] for a, b in zip(theirs, ours, strict=True)]
    return round(statistics.geometric_mean(ratios), 2) if ratios else None


def _accuracy(folds: list[Fold]) -> float | None:
    return round(statistics.mean(accuracy for _, accuracy, _ in folds), 3) if folds else None


def _speed_table(
    step_seconds: dict[ComputePlan | None, list[float]], rate: dict[ComputePlan | None, float]
) -> Table:
    table = Table("", "clips/s, median", "slowest to fastest quarter", "ratio")
    for plan, seconds in step_seconds.items():
        low, _, high = statistics.quantiles(seconds, n=4)
        batch = rate[plan] * statistics.median(seconds)
        table.add_row(
            "naive" if plan is None else _name(plan),
            f"{rate[plan]:.1f}",
            f"{batch / high:.1f} to {batch / low:.1f}",
            f"{rate[plan] / rate[None]:.2f}",
        )
    return table


def _name(plan: ComputePlan) -> str:
    return plan.precision + (" compiled" if plan.compiled else "")


if __name__ == "__main__":
    main()
