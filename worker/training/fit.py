"""Run one fold: train a trial's network on some subjects, and test it on the others after every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from services.clip_cache import ClipCache
from services.contracts import EpochResult, FoldResult, FoldTask, Provenance
from services.errors import CacheMismatch, FoldwiseError, InvalidInput
from services.folds import MIN_TRAIN_CLIPS
from services.seeds import derive_seed
from worker.training.clips import Batches, ClipSet
from worker.training.device import (
    device_name,
    device_with_memory,
    make_deterministic,
    peak_host_memory,
    peak_memory,
    ran_out_of_memory,
    start_counting_memory,
)
from worker.training.evaluate import evaluate
from worker.training.network import Network, NetworkSettings
from worker.training.optim import build_optimizer, class_weights
from worker.training.pretrained import PretrainedModel
from worker.training.steps import LOSS_INTERVAL_STEPS, Steps
from worker.training.training_device import TrainingDevice


class OutOfMemory(FoldwiseError):
    """The device has too little memory for a fold with these settings."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a fold is, after an optimiser step."""

    epoch: int
    """Epoch in training; the first is 1."""

    step: int
    """Optimiser steps so far, over all epochs."""

    loss: float | None
    """Mean loss of the epoch so far. None if it is not finite, and between the steps that read it."""


OnStep = Callable[[Progress], None]


def run_fold(
    task: FoldTask,
    cache: ClipCache,
    device: TrainingDevice,
    *,
    revision: str | None,
    on_step: OnStep,
    pretrained: PretrainedModel | None = None,
) -> FoldResult:
    """Train and test one fold (paper sections 3.1, 4.1).

    The same task on the same device and software gives the same result to the bit, except times and memory. If
    the task leaves memory format and number of threads open, they must be the same too. Sets process-wide
    switches (`make_deterministic`) and torch's global seed.

    Args:
        task: the fold to run.
        cache: the clip cache that the task names.
        device: where to train; keeps clips and a network from fold to fold.
        revision: git revision or image digest, stored with the result.
        on_step: called after every optimiser step; an exception from it ends the fold.
        pretrained: the model that the task's settings name, if they name one.

    Returns:
        The predictions of every epoch run. With `stop_when_perfect` a fold ends at the first epoch that labels
        every test clip correctly. A loss that is not finite (`diverged`) also ends it: the epochs before count;
        if it happens in the first epoch, the network is tested once as it is, with loss None. A task that
        trains on all clips always runs all its epochs, unless it diverges.

    Raises:
        CacheMismatch: `cache` is not the one that the task names.
        InvalidInput: the settings do not fit the clips, or the fold would train on a subject that it tests.
        PlanNotSound: this device does not run the task's compute plan soundly.
        OutOfMemory: the device has too little memory.
    """
    result, _ = _run(task, cache, device, revision, on_step, pretrained)
    return result


def train_model(
    task: FoldTask,
    cache: ClipCache,
    device: TrainingDevice,
    *,
    revision: str | None,
    on_step: OnStep,
    pretrained: PretrainedModel | None = None,
) -> tuple[FoldResult, dict[str, Tensor]]:
    """Run a fold as `run_fold` does, and also return the network's state after the last epoch.

    Returns:
        The result, and the state by name: contiguous tensors on the CPU.

    Raises:
        InvalidInput: the loss is not finite; and as `run_fold`.
        CacheMismatch, PlanNotSound, OutOfMemory: as `run_fold`.
    """
    result, network = _run(task, cache, device, revision, on_step, pretrained)
    if result.diverged:
        raise InvalidInput(
            "the loss is not finite; lower training.learning_rate", field="training.learning_rate"
        )
    state = network.model.state_dict()
    return result, {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def shuffled_batches(rows: Tensor, batch_size: int, order: torch.Generator) -> tuple[Tensor, ...]:
    """Shuffle rows with `order` and cut them into batches of `batch_size`; the last batch may be smaller.

    A last batch of one clip joins the batch before it: batch normalisation has no statistics of one value.
    """
    shuffled = rows[torch.randperm(len(rows), generator=order).to(rows.device)]
    batches = torch.split(shuffled, batch_size)
    if len(batches) > 1 and len(batches[-1]) == 1:
        return (*batches[:-2], torch.cat(batches[-2:]))
    return batches


def _run(
    task: FoldTask,
    cache: ClipCache,
    device: TrainingDevice,
    revision: str | None,
    on_step: OnStep,
    pretrained: PretrainedModel | None,
) -> tuple[FoldResult, Network]:
    started = time.monotonic()
    with _training_guards(task, cache, device):
        clip_set = device.clip_set(task, cache)
        if task.trains_on_all:
            train_rows, test_rows = clip_set.everything()
            validation_rows = test_rows[:0]
        else:
            train_rows, test_rows, validation_rows = clip_set.split(
                task.test_clips, task.outer, task.validation_clips
            )
        tested_rows = torch.cat([test_rows, validation_rows])
        until_perfect = task.economies.stop_when_perfect and not task.trains_on_all
        truth = tuple(clip_set.clips[row].label for row in test_rows.tolist())
        batches = Batches.of(task, clip_set)
        training = _Training(task, batches, train_rows, device, on_step, pretrained)
        epochs: list[EpochResult] = []
        diverged = False
        for epoch in range(1, task.training.epochs + 1):
            loss = training.train(epoch)
            diverged = loss is None
            if diverged and epochs:
                break
            found = evaluate(training.network, batches.clips, tested_rows, task.training.batch_size)
            tested = EpochResult(
                loss=loss,
                predicted=found.predicted[: len(truth)],
                probabilities=found.probabilities[: len(truth)],
                validation_predicted=found.predicted[len(truth) :],
            )
            epochs.append(tested)
            if diverged or (until_perfect and tested.predicted == truth):
                break
    result = FoldResult(
        epochs=tuple(epochs),
        diverged=diverged,
        provenance=_provenance(task, device.torch_device, training, revision, started),
    )
    return result, training.network


class _Training:
    """The training of one fold: its network, its optimiser, and what it has done so far."""

    def __init__(
        self,
        task: FoldTask,
        batches: Batches,
        rows: Tensor,
        device: TrainingDevice,
        on_step: OnStep,
        pretrained: PretrainedModel | None,
    ) -> None:
        if len(rows) < MIN_TRAIN_CLIPS:
            raise InvalidInput(f"a fold needs at least {MIN_TRAIN_CLIPS} clips to train on", field="test_clips")
        hp, settings = task.hyperparameters, task.training
        self.network = device.network(
            NetworkSettings.of(task, channels=batches.channels, device=device.torch_device),
            batches,
            seed=task.seed,
        )
        if settings.pretrained is not None:
            if pretrained is None or pretrained.card.id != settings.pretrained:
                raise InvalidInput(
                    f"the fold starts from model {settings.pretrained}, which was not loaded",
                    field="training.pretrained",
                )
            pretrained.load_into(self.network.model, dataset=task.dataset)
        self.steps = 0
        self.clip_passes = 0
        self._batches = batches
        self._rows = rows
        self._batch_size = settings.batch_size
        self._on_step = on_step
        self._steps = Steps(
            self.network,
            batches,
            build_optimizer(hp, self.network.model.parameters(), learning_rate=settings.learning_rate),
            precision=task.compute.precision,
            weights=_loss_weights(batches.clip_set, rows, len(task.classes)) if hp.loss_weights else None,
        )
        self._order = torch.Generator().manual_seed(task.seed)
        # Dropout draws the same numbers whether or not a check ran before.
        torch.manual_seed(derive_seed("training", task.seed))

    @property
    def redone_steps(self) -> int:
        """Steps that were repeated in fp32."""
        return self._steps.redone

    def train(self, epoch: int) -> float | None:
        """Train one epoch; its mean loss over clips, or None once a reading of the loss is not finite."""
        self.network.model.train()
        self._steps.begin_epoch()
        seen = 0
        shuffled = shuffled_batches(self._rows, self._batch_size, self._order)
        for rows, (clips, labels) in zip(shuffled, self._batches.prepared(shuffled), strict=True):
            self._steps.take(rows, clips, labels)
            seen += len(labels)
            self.steps += 1
            self.clip_passes += len(labels)
            read_loss = self.steps % LOSS_INTERVAL_STEPS == 0
            mean = _finite(self._steps.settle() / seen) if read_loss else None
            self._on_step(Progress(epoch=epoch, step=self.steps, loss=mean))
            if read_loss and mean is None:
                return None
        return _finite(self._steps.settle() / seen)


@contextmanager
def _training_guards(task: FoldTask, cache: ClipCache, device: TrainingDevice) -> Iterator[None]:
    """Check that the task fits the cache, make torch deterministic, and name a lack of memory as such."""
    _check_settings(task, cache)
    make_deterministic(device.torch_device)
    device.use_threads(task.threads)
    start_counting_memory(device.torch_device)
    try:
        yield
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        device.forget_network()
        training = task.training
        raise OutOfMemory(
            f"batches of {training.batch_size} clips of {training.frames} x {training.frame_size} x "
            f"{training.frame_size} at width {training.width} do not fit the memory of "
            f"{device_with_memory(device.torch_device)}; lower training.batch_size or training.width, or use a "
            "larger device",
            field="training.batch_size",
        ) from error


def _provenance(
    task: FoldTask, device: torch.device, training: _Training, revision: str | None, started: float
) -> Provenance:
    cuda = device.type == "cuda"
    return Provenance(
        device=device_name(device),
        torch=torch.__version__,
        cuda=torch.version.cuda if cuda else None,
        cudnn=str(torch.backends.cudnn.version()) if cuda else None,  # type: ignore[no-untyped-call]
        threads=torch.get_num_threads(),
        compute=task.compute,
        memory_format=training.network.settings.memory_format,
        revision=revision,
        fingerprint=task.fingerprint,
        split_hash=task.split_hash,
        seed=task.seed,
        seconds=time.monotonic() - started,
        clip_passes=training.clip_passes,
        redone_steps=training.redone_steps,
        device_memory=peak_memory(device),
        host_memory=peak_host_memory(),
    )


def _check_settings(task: FoldTask, cache: ClipCache) -> None:
    manifest, training = cache.manifest, task.training
    if (manifest.fingerprint, manifest.classes) != (task.fingerprint, task.classes):
        raise CacheMismatch(
            f"the fold needs cache {task.fingerprint} with classes {', '.join(task.classes)}; "
            f"this cache is {manifest.fingerprint} with classes {', '.join(manifest.classes)}",
            field="fingerprint",
        )
    for name, wanted, cached in (
        ("frames", training.frames, manifest.frames),
        ("frame_size", training.frame_size, manifest.frame_size),
    ):
        if wanted != cached:
            raise InvalidInput(
                f"training.{name} is {wanted}, the clip cache has {cached}", field=f"training.{name}"
            )
    if training.batch_size < 2:
        raise InvalidInput(
            "training.batch_size is 1: batch normalisation needs at least 2 clips", field="training.batch_size"
        )


def _loss_weights(clip_set: ClipSet, train_rows: Tensor, classes: int) -> Tensor:
    originals = train_rows[train_rows < len(clip_set.clips)]
    return class_weights(clip_set.labels[originals], classes=classes)


def _finite(value: Tensor) -> float | None:
    number = value.item()
    return number if math.isfinite(number) else None
