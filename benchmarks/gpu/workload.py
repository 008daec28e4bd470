"""What is trained: a fold of a generated cache of CK+'s shape, at the paper's size or scaled for a CPU."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.fold_tasks import benchmark_task
from preprocessing.datasets.ckplus import COMPLETE_COUNTS, COMPLETE_SUBJECTS
from services.clip_cache import CacheRecord, ClipCache, cache_folder, open_cache
from services.clip_cache_writer import CacheWriter
from services.compute_plans import memory_format
from services.contracts import ComputePlan, Economies, FoldTask, TrainingSettings
from services.presets import CKPLUS_AUGMENTATION
from services.search_space import Hyperparameters

FINGERPRINT = "b" * 64
FRAMES = 10


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A cache and the sizes of its network. It can be sent to another process."""

    root: Path
    """Folder of the caches."""

    device: str
    scaled: bool
    """Whether everything is small enough for a CPU."""

    training: TrainingSettings
    hyperparameters: Hyperparameters

    @property
    def folder(self) -> Path:
        """Folder of the cache."""
        return cache_folder(self.root, "generated", FINGERPRINT)

    @property
    def torch_device(self) -> torch.device:
        """The device to measure."""
        return torch.device(self.device)

    def cache(self) -> ClipCache:
        """The generated cache."""
        return open_cache(self.folder, verify=False)

    def task(self, plan: ComputePlan, **changes: int) -> FoldTask:
        """The first fold in this plan; `changes` replace training settings."""
        task = benchmark_task(
            self.cache(),
            self.hyperparameters,
            self.training.model_copy(update=changes),
            plan,
            economies=Economies(stop_when_perfect=False),
            seed=1,
        )
        on_gpu = self.torch_device.type == "cuda"
        return task.model_copy(update={"memory_format": memory_format(plan, on_gpu=on_gpu)})


def make_workload(root: Path, device: str) -> Workload:
    """Generate the cache and choose the sizes: the paper's on a GPU, small ones on a CPU."""
    scaled = torch.device(device).type == "cpu"
    training = TrainingSettings(augmentation=CKPLUS_AUGMENTATION)
    if scaled:
        training = training.model_copy(
            update={"width": 4, "frame_size": 32, "batch_size": 8, "epochs": 2, "learning_rate": 1e-3}
        )
    workload = Workload(
        root=root,
        device=device,
        scaled=scaled,
        training=training,
        hyperparameters=Hyperparameters(temporal_size=3),
    )
    _write_cache(workload, divisor=9 if scaled else 1)
    return workload


def _write_cache(workload: Workload, *, divisor: int) -> None:
    """Clips of a bright bar: its class decides how it moves, its subject where it starts."""
    generator, numbers = random.Random(0), np.random.default_rng(0)
    labels = [label for label, count in COMPLETE_COUNTS.items() for _ in range(max(2, count // divisor))]
    generator.shuffle(labels)
    subjects = COMPLETE_SUBJECTS // divisor
    writer = CacheWriter(workload.root, "generated", FINGERPRINT)
    clip_ids = []
    for number, label in enumerate(labels):
        subject = f"s{number % subjects:03}"
        clip_ids.append(f"{subject}/{number}")
        frames = _clip(
            workload.training.frame_size, list(COMPLETE_COUNTS).index(label), number % subjects, numbers
        )
        writer.add(_record(clip_ids[-1], subject, label), frames, frames)
    writer.finish(
        clip_ids=clip_ids,
        classes=tuple(COMPLETE_COUNTS),
        settings={},
        tools={},
        skipped={},
        warnings=(),
    )


def _clip(size: int, label: int, subject: int, numbers: np.random.Generator) -> NDArray[np.uint8]:
    angle = np.pi * label / len(COMPLETE_COUNTS)
    y, x = np.mgrid[:size, :size] / size
    across = x * np.cos(angle) + y * np.sin(angle)
    times = np.arange(FRAMES)[:, None, None] / FRAMES
    bar = np.exp(-(((across - times + 0.02 * subject) % 1 - 0.5) ** 2) / 0.01)
    noise = numbers.normal(0, 0.1, bar.shape)
    clip: NDArray[np.uint8] = (np.clip(bar + noise, 0, 1) * 255).astype(np.uint8)
    return clip


def _record(clip_id: str, subject: str, label: str) -> CacheRecord:
    return CacheRecord(
        clip_id=clip_id,
        subject=subject,
        label=label,
        source=clip_id,
        frames=tuple(f"{frame}.png" for frame in range(FRAMES)),
        detector="none",
        boxes=(None,) * FRAMES,
        confidences=(None,) * FRAMES,
        repeated=0,
        flags=(),
    )
