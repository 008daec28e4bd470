"""The measurements. Each one is a function of the workload that runs in a process which the others share."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.fold_tasks import matrix_product_rate, useful_flops
from benchmarks.gpu.workload import Workload
from benchmarks.naive_training import run_naive_fold
from services.contracts import ComputePlan, FoldResult, Precision
from services.errors import PlanNotSound
from services.network_layers import CHANNELS
from worker.training.clips import Batches
from worker.training.device import (
    device_with_memory,
    free_memory,
    keep_freed_memory,
    make_deterministic,
    peak_memory,
    start_counting_memory,
    synchronize,
)
from worker.training.fit import OutOfMemory, Progress, run_fold
from worker.training.model import TemporalConv
from worker.training.network import NetworkSettings
from worker.training.precision import arithmetic, autocast, possible_plans
from worker.training.training_device import TrainingDevice

Result = dict[str, Any]

WARM_UP_STEPS = 5
TIMED_STEPS = 20
PROFILED_STEPS = 5
LARGEST_KERNELS = 10
FILLED_CHANNELS = (1, 4, 8)
"""Channels up to which the first convolution fills a gray clip with zeros."""

_devices: dict[str, TrainingDevice] = {}


def machine(workload: Workload) -> Result:
    """The device and the software."""
    device = workload.torch_device
    found: Result = {
        "device": device_with_memory(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "useful_flops": useful_flops(workload.task(ComputePlan())),
        "plans": [str(plan) for plan in possible_plans(device)],
    }
    if device.type == "cuda":
        found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found["driver"] = _driver()
    return found


def peak(workload: Workload, precision: Precision) -> Result:
    """Operations per second of a large matrix product, in tera."""
    device = workload.torch_device
    size = 8192 if device.type == "cuda" else 1024
    return {"tflops": matrix_product_rate(device, precision, size=size) / 1e12}


def plain_loop(workload: Workload) -> Result:
    """Clips per second of the baseline: eager fp32, TF32 convolutions as PyTorch has them, three channels."""
    device, steps = workload.torch_device, _timed_steps(workload)
    clock = _Clock(device, WARM_UP_STEPS, WARM_UP_STEPS + steps)
    start_counting_memory(device)
    with suppress(_Enough):
        run_naive_fold(
            workload.cache(),
            workload.task(ComputePlan()).test_clips,
            workload.hyperparameters,
            workload.training,
            seed=0,
            device=device,
            loader_workers=min(8, os.cpu_count() or 1),
            tf32=device.type == "cuda",
            on_step=clock.tick,
        )
    return {"clips_per_second": clock.rate(workload.training.batch_size), "memory": peak_memory(device)}


def plan(workload: Workload, compute: ComputePlan) -> Result:
    """A plan as a worker runs it: clips per second and memory if it is sound, and its errors against fp32."""
    device, steps = _device(workload), _timed_steps(workload)
    device.forget_network()
    started = time.perf_counter()
    make_deterministic(device.torch_device)
    task = workload.task(compute)
    batches = Batches.of(task, device.clip_set(task, workload.cache()))
    settings = NetworkSettings.of(task, channels=batches.channels, device=device.torch_device)
    with suppress(PlanNotSound):
        device.network(settings, batches, seed=task.seed)
    found: Result = {"check_seconds": time.perf_counter() - started}
    if (check := device.checks.get(settings.check_key())) is not None:
        found |= asdict(check)
    if compute not in device.plans:
        return {**found, "failed": "the plan is not sound here"}
    clock = _Clock(device.torch_device, WARM_UP_STEPS, WARM_UP_STEPS + steps)
    start_counting_memory(device.torch_device)
    with suppress(_Enough):
        _run(workload, compute, clock.tick)
    found["clips_per_second"] = clock.rate(workload.training.batch_size)
    found["memory"] = peak_memory(device.torch_device)
    return found


def fold(workload: Workload, compute: ComputePlan) -> Result:
    """Seconds of a whole fold with all its epochs, on a warm worker."""
    result = _run(workload, compute, lambda: None)
    return {
        "seconds": result.provenance.seconds,
        "epochs": len(result.epochs),
        "redone_steps": result.provenance.redone_steps,
    }


def repeat(workload: Workload, compute: ComputePlan) -> Result:
    """Whether two runs of a fold of two epochs have equal bits; `first` is compared across processes."""
    first, second = (_run(workload, compute, lambda: None, epochs=2) for _ in range(2))
    bits = first.model_dump_json(include={"epochs"})
    found: Result = {"equal": first.epochs == second.epochs, "first": bits}
    if not found["equal"]:
        found["differs"] = _first_difference(workload, compute)
    return found


def out_of_memory(workload: Workload, compute: ComputePlan) -> Result:
    """What a batch that cannot fit does, and whether the device works afterwards."""
    device = _device(workload)
    if device.torch_device.type == "cpu":
        return {"skipped": "a CPU's memory is that of the machine; filling it would stop other processes"}
    before = free_memory(device.torch_device)
    try:
        _run(workload, compute, lambda: None, batch_size=1700, width=256, epochs=1)
        said = "it fitted"
    except OutOfMemory as error:
        said = error.message
    after = free_memory(device.torch_device)
    works = len(_run(workload, compute, lambda: None, epochs=1).epochs) == 1
    return {"said": said, "works_afterwards": works, "free_before": before, "free_after": after}


def profiled(workload: Workload, compute: ComputePlan) -> Result:
    """The largest kernels of some steps, with their share of the time of all kernels."""
    device = workload.torch_device
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    recorder = profile(activities=activities)
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == WARM_UP_STEPS:
            synchronize(device)
            recorder.start()
        if ticks == WARM_UP_STEPS + PROFILED_STEPS:
            synchronize(device)
            recorder.stop()
            raise _Enough

    with suppress(_Enough):
        _run(workload, compute, tick)
    rows = [
        (event.key, event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        for event in recorder.key_averages()
        if not on_gpu or event.device_type == DeviceType.CUDA
    ]
    rows.sort(key=lambda row: -row[1])
    total = sum(micros for _, micros in rows) or 1
    return {
        "ms_per_step": total / 1000 / PROFILED_STEPS,
        "kernels": [{"name": name[:80], "share": micros / total} for name, micros in rows[:LARGEST_KERNELS]],
    }


def first_convolution(workload: Workload, compute: ComputePlan) -> Result:
    """Milliseconds of the first convolution of gray clips, forward and backward, by the channels it fills."""
    device, training = workload.torch_device, workload.training
    shape = (training.batch_size, 1, training.frames, training.frame_size, training.frame_size)
    clips = torch.rand(shape, device=device)
    found = {}
    for channels in FILLED_CHANNELS:
        with device:
            layer = TemporalConv(CHANNELS, training.width, workload.hyperparameters.temporal_size)
        layer = layer.to(memory_format=torch.channels_last_3d)
        layer.min_channels = channels
        seconds = []
        with arithmetic(compute.precision), autocast(compute.precision, device):
            for _ in range(8):
                synchronize(device)
                started = time.perf_counter()
                layer(clips).sum().backward()
                synchronize(device)
                seconds.append(time.perf_counter() - started)
        found[str(channels)] = 1000 * statistics.median(seconds[3:])
    return {"milliseconds": found}


class _Enough(Exception):
    """Ends a fold when enough steps are timed."""


class _Clock:
    """Times the steps between two, and waits for the device at these two only."""

    def __init__(self, device: torch.device, first: int, last: int) -> None:
        self._device, self._first, self._last = device, first, last
        self._steps, self._started, self._ended = 0, 0.0, 0.0

    def tick(self) -> None:
        self._steps += 1
        if self._steps in {self._first, self._last}:
            synchronize(self._device)
            self._started, self._ended = self._ended, time.perf_counter()
        if self._steps == self._last:
            raise _Enough

    def rate(self, batch_size: int) -> float:
        """Clips per second."""
        return (self._last - self._first) * batch_size / (self._ended - self._started)


def _device(workload: Workload) -> TrainingDevice:
    if workload.device not in _devices:
        if workload.torch_device.type == "cpu":
            keep_freed_memory()
        _devices[workload.device] = TrainingDevice(workload.torch_device)
    return _devices[workload.device]


def _run(workload: Workload, compute: ComputePlan, tick: Callable[[], None], **changes: int) -> FoldResult:
    def on_step(_: Progress) -> None:
        tick()

    return run_fold(
        workload.task(compute, **changes), workload.cache(), _device(workload), revision=None, on_step=on_step
    )


def _first_difference(workload: Workload, compute: ComputePlan) -> str:
    """The first layer whose output differs between two equal passes, else the first whose gradient does."""
    device = _device(workload)
    task = workload.task(compute)
    batches = Batches.of(task, device.clip_set(task, workload.cache()))
    settings = NetworkSettings.of(task, channels=batches.channels, device=device.torch_device)
    network = device.network(settings, batches, seed=task.seed)
    clips, labels = batches.random(settings.batch_size, 0)
    passes = []
    for _ in range(2):
        outputs: dict[str, torch.Tensor] = {}
        # Compiled code runs no hooks.
        hooks = [
            module.register_forward_hook(partial(_keep, outputs, name))
            for name, module in network.model.named_modules()
            if not list(module.children()) and not compute.compiled
        ]
        torch.manual_seed(0)
        network.model.train().zero_grad()
        with arithmetic(compute.precision):
            F.cross_entropy(network(clips), labels).backward()  # type: ignore[no-untyped-call]
        for hook in hooks:
            hook.remove()
        gradients = {n: p.grad.clone() for n, p in network.model.named_parameters() if p.grad is not None}
        passes.append((outputs, gradients))
    for kind, index in (("output", 0), ("gradient", 1)):
        for name, value in passes[0][index].items():
            if not torch.equal(value, passes[1][index][name]):
                return f"the {kind} of {name}"
    return "no layer on its own: look at the optimiser and the order of clips"


def _keep(
    outputs: dict[str, torch.Tensor], name: str, _module: nn.Module, _inputs: object, output: torch.Tensor
) -> None:
    outputs[name] = output.detach().clone()


def _timed_steps(workload: Workload) -> int:
    return 5 if workload.scaled else TIMED_STEPS


def _driver() -> str | None:
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(  # noqa: S603 - the driver's own program
        query, capture_output=True, text=True, check=False, timeout=30
    )
    return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else None
