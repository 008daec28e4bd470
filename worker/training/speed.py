"""How fast a device trains a configuration, timed on generated clips."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from statistics import median

import torch

from services.contracts import FoldTask
from services.folds import Clip
from worker.training.clips import Batches, ClipSet
from worker.training.device import make_deterministic, synchronize
from worker.training.network import NetworkSettings
from worker.training.optim import build_optimizer
from worker.training.steps import LOSS_INTERVAL_STEPS, Steps
from worker.training.training_device import TrainingDevice

MAX_TIMED_STEPS = 50
"""Optimiser steps after which a measurement ends, even if time remains."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured."""

    clips_per_second: float
    batch_size: int
    """Clips of a step; fewer than the task's where a whole batch would take too long."""

    steps: int
    """Optimiser steps timed."""


def measure_speed(task: FoldTask, device: TrainingDevice, *, channels: int, seconds: float) -> Speed:
    """Time training steps of a task's configuration (forward, backward, optimiser) as a worker runs them.

    Two steps with two clips are not counted; the second decides how large a batch fits the time. Sets
    process-wide switches (`make_deterministic`).

    Args:
        task: only its settings are used, not its clips.
        device: where to train.
        channels: channels of the clips: 1 for gray, 3 for colour.
        seconds: approximate time to spend; at least one step is timed.

    Raises:
        PlanNotSound: this device does not run the task's compute plan soundly.
    """
    make_deterministic(device.torch_device)
    device.use_threads(task.threads)
    end = time.perf_counter() + seconds
    step = _steps(task, device, channels, 2)
    next(step)
    per_clip = next(step) / 2
    fitting = int((end - time.perf_counter()) / 2 / per_clip)
    batch_size = max(2, min(task.training.batch_size, fitting))
    step = _steps(task, device, channels, batch_size)
    next(step)
    taken = [next(step)]
    while time.perf_counter() < end and len(taken) < MAX_TIMED_STEPS:
        taken.append(next(step))
    return Speed(clips_per_second=batch_size / median(taken), batch_size=batch_size, steps=len(taken))


def _steps(task: FoldTask, device: TrainingDevice, channels: int, batch_size: int) -> Iterator[float]:
    """Train without end and yield the seconds of each step."""
    training = task.training.model_copy(update={"batch_size": batch_size})
    task = task.model_copy(update={"training": training})
    batches = Batches.of(task, _noise(task, device.torch_device, channels))
    settings = NetworkSettings.of(task, channels=batches.channels, device=device.torch_device)
    network = device.network(settings, batches, seed=task.seed)
    network.model.train()
    optimizer = build_optimizer(
        task.hyperparameters, network.model.parameters(), learning_rate=training.learning_rate
    )
    steps = Steps(network, batches, optimizer, precision=task.compute.precision, weights=None)
    rows = torch.arange(batch_size)
    for number in count(1):
        synchronize(device.torch_device)
        started = time.perf_counter()
        steps.take(rows, batches.clips(rows), batches.labels(rows))
        if number % LOSS_INTERVAL_STEPS == 0:
            steps.settle()
        synchronize(device.torch_device)
        yield time.perf_counter() - started


def _noise(task: FoldTask, device: torch.device, channels: int) -> ClipSet:
    training = task.training
    shape = (training.batch_size, training.frames, training.frame_size, training.frame_size)
    random = torch.Generator().manual_seed(0)
    frames = torch.randint(256, shape if channels == 1 else (*shape, 3), generator=random, dtype=torch.uint8)
    rows = torch.arange(training.batch_size)
    return ClipSet(
        clips=tuple(Clip(clip_id=str(row), subject=str(row), label=0) for row in rows.tolist()),
        frames=frames.to(device),
        clip_of_row=rows,
        labels=(rows % len(task.classes)).to(device),
    )
