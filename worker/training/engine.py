"""What a worker keeps from fold to fold on its device: clips, a compiled network, what it has measured."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import get_args

import structlog
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from services.contracts import ComputePlan, FoldTask, MemoryFormat
from services.errors import PlanNotSound
from services.seeds import sha256_of
from worker.training.clips import ClipSet, ClipStore
from worker.training.device import device_name, ran_out_of_memory, synchronize
from worker.training.network import Network
from worker.training.optim import build_optimizer
from worker.training.precision import (
    CHECKED_BATCHES,
    PLAIN,
    arithmetic,
    check_soundness,
    possible_plans,
)

log = structlog.get_logger()

STEPS_WORTH_MEASURING = 200
"""A fold of fewer optimiser steps is over before a measurement has paid."""

TIMED_STEPS = 3

GAIN_WORTH_LEAVING_THE_DEFAULT = 1.05
"""Workers of one kind should choose alike: a smaller gain may be noise, and another format rounds otherwise."""


class Engine:
    """One per worker process."""

    def __init__(self, device: torch.device, *, measurements: Path | None = None) -> None:
        """Start with nothing kept.

        Args:
            device: where to train.
            measurements: JSON file to keep measurements in beyond this process; None keeps them in memory.
        """
        self.device = device
        self.clips = ClipStore()
        self.plans = possible_plans(device)
        """Compute plans to take folds of; one that fails its check is dropped."""

        self._measurements = measurements
        self._formats: dict[str, MemoryFormat] = _read(measurements)
        self._checked: set[str] = set()
        self._kept: tuple[str, Network] | None = None

    def network(
        self, task: FoldTask, clip_set: ClipSet, *, steps: int, memory_format: MemoryFormat | None = None
    ) -> Network:
        """The fold's network with its initial weights, ready to train.

        The memory format is the faster of the two on this device where a fold is long enough to measure. A
        plan other than plain fp32 is checked against it first, once per configuration.

        Args:
            task: the fold.
            clip_set: its clips, to measure and check on.
            steps: optimiser steps the fold has at most.
            memory_format: to use instead of measuring, in a replay.

        Raises:
            PlanNotSound: this device does not run the task's compute plan, or runs it wrong.
        """
        if task.compute not in self.plans:
            raise PlanNotSound(
                f"{device_name(self.device)} has no means for {_name(task.compute)}; use another device, or "
                "compute.precision=fp32 and compute.compiled=false",
                field="compute",
            )
        try:
            network = self._prepared(
                task, clip_set, memory_format or self._memory_format(task, clip_set, steps)
            )
        except RuntimeError as error:
            if not (task.compute.compiled and _compiler_failed(error)) or ran_out_of_memory(error):
                raise
            raise self._refused(task, f"torch.compile fails: {str(error).strip().splitlines()[0]}") from error
        network.draw_weights(task)
        return network

    def forget_network(self) -> None:
        """Give the memory of the network kept from the last fold back."""
        self._kept = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _prepared(self, task: FoldTask, clip_set: ClipSet, memory_format: MemoryFormat) -> Network:
        key = _key(task, clip_set, memory_format, *_configuration(task))
        if self._kept is None or self._kept[0] != key:
            self.forget_network()
            network = Network(task, self.device, memory_format)
            if task.compute != PLAIN and key not in self._checked:
                self._check(task, clip_set, network)
                self._checked.add(key)
            self._kept = (key, network)
        return self._kept[1]

    def _memory_format(self, task: FoldTask, clip_set: ClipSet, steps: int) -> MemoryFormat:
        default: MemoryFormat = "contiguous"
        if task.compute.compiled or self.device.type == "cuda":
            default = "channels_last"
        if steps < STEPS_WORTH_MEASURING:
            return default
        hp = task.hyperparameters
        key = _key(
            task, clip_set, device_name(self.device), torch.__version__, torch.get_num_threads(),
            hp.temporal_size, hp.pooling_layer, hp.second_conv_layer, hp.activation,
        )  # fmt: skip
        if key not in self._formats:
            self.forget_network()
            seconds = {name: self._seconds_per_step(task, clip_set, name) for name in get_args(MemoryFormat)}
            faster, slower = sorted(seconds, key=seconds.__getitem__)
            worth_it = seconds[slower] / seconds[faster] > GAIN_WORTH_LEAVING_THE_DEFAULT
            self._formats[key] = faster if worth_it else default
            _write(self._measurements, self._formats)
            log.info(
                "memory_format_chosen",
                memory_format=self._formats[key],
                gain=round(max(seconds.values()) / min(seconds.values()), 2),
                **{f"{name}_ms": round(1000 * second, 1) for name, second in seconds.items()},
            )
        return self._formats[key]

    def _seconds_per_step(self, task: FoldTask, clip_set: ClipSet, memory_format: MemoryFormat) -> float:
        network = Network(task, self.device, memory_format)
        optimizer = build_optimizer(task.hyperparameters, network.model.parameters(), learning_rate=1e-4)
        clips, labels = _batch(task, clip_set, 0)
        seconds = []
        for _ in range(1 + TIMED_STEPS):
            started = time.perf_counter()
            optimizer.zero_grad()
            with arithmetic(task.compute.precision):
                F.cross_entropy(network(clips), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            synchronize(self.device)
            seconds.append(time.perf_counter() - started)
        return min(seconds[1:])

    def _check(self, task: FoldTask, clip_set: ClipSet, network: Network) -> None:
        started = time.perf_counter()
        batches = [_batch(task, clip_set, number) for number in range(CHECKED_BATCHES)]
        found = check_soundness(network.model, network, batches, task.compute.precision)
        log.info(
            "plan_checked",
            precision=task.compute.precision,
            compiled=task.compute.compiled,
            logits_error=float(f"{found.logits_error:.2g}"),
            gradient_error=float(f"{found.gradient_error:.2g}"),
            not_finite=found.not_finite,
            sound=found.sound,
            seconds=round(time.perf_counter() - started, 1),
        )
        if not found.sound:
            raise self._refused(
                task,
                f"logits differ from fp32 by {found.logits_error:.2g}, gradients by "
                f"{found.gradient_error:.2g}, {found.not_finite:.0%} of batches not finite",
            )

    def _refused(self, task: FoldTask, what: str) -> PlanNotSound:
        """The error that says why a plan is not run, which is not offered again."""
        self.plans = tuple(plan for plan in self.plans if plan != task.compute)
        return PlanNotSound(
            f"{device_name(self.device)} with torch {torch.__version__} does not run {_name(task.compute)} "
            f"soundly: {what}; use another device, or compute.precision=fp32 and compute.compiled=false",
            field="compute",
        )


def _compiler_failed(error: RuntimeError) -> bool:
    # Loading the compiler takes seconds, and here it is loaded already.
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def _name(plan: ComputePlan) -> str:
    return plan.precision + (", compiled" if plan.compiled else "")


def _batch(task: FoldTask, clip_set: ClipSet, number: int) -> tuple[Tensor, Tensor]:
    rows = torch.randint(
        len(clip_set.labels), (task.training.batch_size,), generator=torch.Generator().manual_seed(number)
    ).to(clip_set.device)
    clips = clip_set.batch(
        rows,
        normalization=task.hyperparameters.normalization,
        gray_as_one_channel=task.economies.gray_as_one_channel,
    )
    return clips, clip_set.labels[rows]


def _configuration(task: FoldTask) -> list[object]:
    training = task.training
    return [
        task.hyperparameters.model_dump(mode="json"),
        len(task.classes),
        training.bn_momentum,
        training.batch_norm,
        training.pool_counts_padding,
    ]


def _key(task: FoldTask, clip_set: ClipSet, *more: object) -> str:
    training, economies = task.training, task.economies
    return sha256_of(
        [
            task.compute.model_dump(mode="json"),
            [training.width, training.batch_size, training.frames, training.frame_size, clip_set.channels],
            [economies.skip_dead_taps, economies.gray_as_one_channel],
            *more,
        ]
    )


def _read(file: Path | None) -> dict[str, MemoryFormat]:
    try:
        kept = json.loads(file.read_text()) if file else {}
    except (OSError, ValueError):
        return {}
    formats = get_args(MemoryFormat)
    return {key: value for key, value in kept.items() if value in formats} if isinstance(kept, dict) else {}


def _write(file: Path | None, formats: dict[str, MemoryFormat]) -> None:
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({**_read(file), **formats}, indent=1))
        partial.replace(file)
    except OSError as error:
        # A read-only file system costs another measurement, no more.
        log.info("measurements_not_kept", error=str(error))
