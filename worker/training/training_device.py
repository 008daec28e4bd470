"""A worker's device and what it keeps from fold to fold: clips, one compiled network, measurements."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import get_args

import structlog
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from services.contracts import ComputePlan, MemoryFormat
from services.errors import PlanNotSound
from services.seeds import sha256_of
from worker.training.clips import Batches, ClipStore
from worker.training.device import device_name, ran_out_of_memory, synchronize
from worker.training.network import Network, NetworkSettings
from worker.training.precision import (
    CHECKED_BATCHES,
    PLAIN,
    arithmetic,
    check_soundness,
    possible_plans,
)

log = structlog.get_logger()

MIN_STEPS_TO_MEASURE = 200
"""Optimiser steps of a fold below which measuring memory formats costs more than it saves."""

TIMED_STEPS = 3
"""Optimiser steps timed for each memory format; the fastest one counts."""

MIN_SPEEDUP = 1.05
"""Ratio of step times above which the faster memory format replaces the default. Workers of one kind should
choose the same format: a smaller gain may be noise, and each format rounds differently."""


class TrainingDevice:
    """One per worker process."""

    def __init__(self, device: torch.device, *, measurements: Path | None = None) -> None:
        """Start with no clips and no network.

        Args:
            device: the torch device to train on.
            measurements: JSON file that keeps measurements beyond this process; None keeps them in memory.
        """
        self.torch_device = device
        self.clips = ClipStore()
        self.plans = possible_plans(device)
        """Compute plans that this worker offers to run; a plan that fails its check is removed."""

        self._measurements_file = measurements
        self._fastest_formats: dict[str, MemoryFormat] = _read(measurements)
        self._checked: set[tuple[NetworkSettings, MemoryFormat]] = set()
        self._network: Network | None = None

    def network(
        self,
        settings: NetworkSettings,
        batches: Batches,
        *,
        seed: int,
        steps: int,
        memory_format: MemoryFormat | None = None,
    ) -> Network:
        """The network of a fold with its initial weights, ready to train.

        Where a fold is long enough to measure, the memory format is the faster of the two on this device. A
        plan other than plain fp32 is checked against plain fp32 first, once per settings and memory format.

        Args:
            settings: what the network is built for.
            batches: the fold's clips, to measure and check with.
            seed: of the initial weights.
            steps: maximum optimiser steps of the fold.
            memory_format: use this one instead of measuring; for a replay.

        Raises:
            PlanNotSound: this device does not support the compute plan, or computes wrong results with it.
        """
        if settings.compute not in self.plans:
            raise PlanNotSound(
                f"{device_name(self.torch_device)} does not support {_name(settings.compute)}; use another "
                "device, or compute.precision=fp32 and compute.compiled=false",
                field="compute",
            )
        try:
            if memory_format is None:
                memory_format = self._memory_format(settings, batches, seed, steps)
            network = self._get_or_build(settings, batches, seed, memory_format)
        except RuntimeError as error:
            if not (settings.compute.compiled and _compiler_failed(error)) or ran_out_of_memory(error):
                raise
            reason = f"torch.compile fails: {str(error).strip().splitlines()[0]}"
            raise self._withdraw_plan(settings.compute, reason) from error
        network.draw_weights(seed)
        return network

    def forget_network(self) -> None:
        """Free the memory of the network kept from the last fold."""
        self._network = None
        if self.torch_device.type == "cuda":
            torch.cuda.empty_cache()

    def _get_or_build(
        self, settings: NetworkSettings, batches: Batches, seed: int, memory_format: MemoryFormat
    ) -> Network:
        key = (settings, memory_format)
        if self._network is None or (self._network.settings, self._network.memory_format) != key:
            # Two networks may not fit the device together.
            self.forget_network()
            network = Network(settings, seed=seed, device=self.torch_device, memory_format=memory_format)
            if settings.compute != PLAIN and key not in self._checked:
                self._check(network, batches)
                self._checked.add(key)
            self._network = network
        return self._network

    def _memory_format(
        self, settings: NetworkSettings, batches: Batches, seed: int, steps: int
    ) -> MemoryFormat:
        default: MemoryFormat = "contiguous"
        if settings.compute.compiled or self.torch_device.type == "cuda":
            default = "channels_last"
        if steps < MIN_STEPS_TO_MEASURE:
            return default
        key = _measurement_key(settings, self.torch_device)
        if key not in self._fastest_formats:
            self.forget_network()
            seconds = {
                name: self._seconds_per_step(settings, batches, seed, name) for name in get_args(MemoryFormat)
            }
            faster, slower = sorted(seconds, key=seconds.__getitem__)
            worth_it = seconds[slower] / seconds[faster] > MIN_SPEEDUP
            self._fastest_formats[key] = faster if worth_it else default
            _write(self._measurements_file, self._fastest_formats)
            log.info(
                "memory_format_chosen",
                memory_format=self._fastest_formats[key],
                gain=round(max(seconds.values()) / min(seconds.values()), 2),
                **{f"{name}_ms": round(1000 * second, 1) for name, second in seconds.items()},
            )
        return self._fastest_formats[key]

    def _seconds_per_step(
        self, settings: NetworkSettings, batches: Batches, seed: int, memory_format: MemoryFormat
    ) -> float:
        network = Network(settings, seed=seed, device=self.torch_device, memory_format=memory_format)
        # Lookahead adds nothing to so few steps.
        optimizer = torch.optim.Adam(network.model.parameters(), lr=1e-4, fused=True)
        clips, labels = batches.random(settings.batch_size, 0)
        seconds = []
        for _ in range(1 + TIMED_STEPS):
            started = time.perf_counter()
            optimizer.zero_grad()
            with arithmetic(settings.compute.precision):
                F.cross_entropy(network(clips), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            synchronize(self.torch_device)
            seconds.append(time.perf_counter() - started)
        return min(seconds[1:])

    def _check(self, network: Network, batches: Batches) -> None:
        settings = network.settings
        started = time.perf_counter()
        checked = [batches.random(settings.batch_size, number) for number in range(CHECKED_BATCHES)]
        found = check_soundness(network.model, network, checked, settings.compute.precision)
        log.info(
            "plan_checked",
            precision=settings.compute.precision,
            compiled=settings.compute.compiled,
            logits_error=float(f"{found.logits_error:.2g}"),
            gradient_error=float(f"{found.gradient_error:.2g}"),
            not_finite=found.not_finite,
            sound=found.sound,
            seconds=round(time.perf_counter() - started, 1),
        )
        if not found.sound:
            raise self._withdraw_plan(
                settings.compute,
                f"logits differ from fp32 by {found.logits_error:.2g}, gradients by "
                f"{found.gradient_error:.2g}, {found.not_finite:.0%} of batches not finite",
            )

    def _withdraw_plan(self, plan: ComputePlan, reason: str) -> PlanNotSound:
        """Stop offering a plan; the error to raise for it."""
        self.plans = tuple(offered for offered in self.plans if offered != plan)
        return PlanNotSound(
            f"{device_name(self.torch_device)} with torch {torch.__version__} does not run {_name(plan)} "
            f"soundly: {reason}; use another device, or compute.precision=fp32 and compute.compiled=false",
            field="compute",
        )


def _compiler_failed(error: RuntimeError) -> bool:
    # Importing the compiler takes seconds; after an error of a compiled plan it is imported already.
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def _name(plan: ComputePlan) -> str:
    return plan.precision + (", compiled" if plan.compiled else "")


def _measurement_key(settings: NetworkSettings, device: torch.device) -> str:
    """The name of a measurement in the file: software and hardware, and what decides a network's speed."""
    return sha256_of(
        [
            device_name(device),
            torch.__version__,
            torch.get_num_threads(),
            settings.compute.model_dump(mode="json"),
            settings.batch_size,
            settings.channels,
            settings.config.values_for_speed(),
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
        # On a read-only file system the next process measures again.
        log.info("measurements_not_kept", error=str(error))
