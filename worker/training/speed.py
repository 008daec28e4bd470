"""How fast a device trains a configuration: steps on made-up clips, timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from services.contracts import FoldTask
from services.folds import Clip
from worker.training.clips import ClipSet
from worker.training.device import make_deterministic, synchronize
from worker.training.engine import Engine
from worker.training.optim import build_optimizer
from worker.training.precision import arithmetic

STEPS_AT_MOST = 50


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured."""

    clips_per_second: float
    batch_size: int
    """Clips of a step; fewer than asked for where a whole batch would have taken too long."""

    steps: int


def measure_speed(task: FoldTask, engine: Engine, *, channels: int, seconds: float) -> Speed:
    """Train steps of a task's configuration, forward, backward and optimiser, as a worker runs them.

    A first step of two clips is not counted; it says how large a batch fits the time. Sets process-wide
    switches (`make_deterministic`).

    Args:
        task: its settings count, its clips are not looked at.
        engine: the device.
        channels: 1 for gray clips, 3 for colour.
        seconds: to spend, about; at least one step is run.

    Raises:
        PlanNotSound: this device does not run the task's compute plan soundly.
    """
    make_deterministic(engine.device)
    end = time.perf_counter() + seconds
    step = _steps(task, engine, channels, 2)
    next(step)
    per_clip = next(step) / 2
    fitting = int((end - time.perf_counter()) / 2 / per_clip)
    batch_size = max(2, min(task.training.batch_size, fitting))
    step = _steps(task, engine, channels, batch_size)
    next(step)
    taken = [next(step)]
    while time.perf_counter() < end and len(taken) < STEPS_AT_MOST:
        taken.append(next(step))
    return Speed(clips_per_second=batch_size / median(taken), batch_size=batch_size, steps=len(taken))


def _steps(task: FoldTask, engine: Engine, channels: int, batch_size: int) -> Iterator[float]:
    """Seconds of one step after the other, for ever."""
    training = task.training.model_copy(update={"batch_size": batch_size})
    task = task.model_copy(update={"training": training})
    clip_set = _noise(task, engine.device, channels)
    network = engine.network(task, clip_set, steps=0)
    network.model.train()
    optimizer = build_optimizer(
        task.hyperparameters, network.model.parameters(), learning_rate=training.learning_rate
    )
    rows = torch.arange(batch_size, device=engine.device)
    while True:
        synchronize(engine.device)
        started = time.perf_counter()
        clips = clip_set.batch(
            rows,
            normalization=task.hyperparameters.normalization,
            gray_as_one_channel=task.economies.gray_as_one_channel,
        )
        optimizer.zero_grad()
        with arithmetic(task.compute.precision):
            F.cross_entropy(network(clips), clip_set.labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        synchronize(engine.device)
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
