"""Run one fold: train the network of a trial on all subjects but the fold's, test it after every epoch."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from services.clip_cache import ClipCache
from services.contracts import EpochResult, FoldAssignment, FoldResult, Provenance
from services.errors import CacheMismatch, FoldwiseError, InvalidInput
from worker.training.clips import ClipSet, ClipStore
from worker.training.evaluate import evaluate
from worker.training.model import EmotionNet, build_model
from worker.training.optim import Optimizer, build_optimizer, class_weights

LOSS_EVERY = 10
"""Steps between two looks at the loss: each look makes a GPU wait for its queue to drain."""


class OutOfMemory(FoldwiseError):
    """The device has not enough memory for a fold with these settings."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a fold is, after an optimiser step."""

    epoch: int
    """The epoch being trained; the first is 1."""

    step: int
    """Optimiser steps so far, over all epochs."""

    loss: float | None
    """Mean loss of the epoch so far; None except at every tenth step, and where it is not finite."""


def run_fold(
    assignment: FoldAssignment,
    cache: ClipCache,
    store: ClipStore,
    *,
    device: torch.device,
    revision: str | None,
    on_step: Callable[[Progress], None],
) -> FoldResult:
    """Train and test one fold (paper sections 3.1, 4.1).

    The same assignment on the same device, software and number of threads gives the same result to the bit,
    times apart. Sets process-wide switches (`make_deterministic`) and torch's global seed.

    Args:
        assignment: what to run; its lease is not looked at.
        cache: the clips, the cache that the assignment names.
        store: keeps the clips on the device from fold to fold.
        device: where to train.
        revision: git revision or image digest, for the record.
        on_step: called after every optimiser step; what it raises ends the fold.

    Returns:
        The predictions of every epoch run. A fold ends early at the first epoch with every test clip right,
        where `stop_when_perfect` asks for it, and at a loss that is not finite (`diverged`): the epochs
        before it count; where it was the first, the network is tested once as it is, with loss None.

    Raises:
        CacheMismatch: `cache` is not the one the assignment names.
        InvalidInput: settings that do not fit the clips, or a fold that trains on a subject it tests.
        OutOfMemory: the device's memory is too small.
    """
    started = time.monotonic()
    _check(assignment, cache)
    make_deterministic(device)
    try:
        epochs, diverged, clip_passes = _train_and_test(assignment, cache, store, device, on_step)
    except torch.OutOfMemoryError as error:
        training = assignment.training
        raise OutOfMemory(
            f"batches of {training.batch_size} clips of {training.frames} x {training.frame_size} x "
            f"{training.frame_size} at width {training.width} do not fit the memory of {_memory(device)}; "
            "lower training.batch_size or training.width, or use a larger device",
            field="training.batch_size",
        ) from error
    cuda = device.type == "cuda"
    return FoldResult(
        epochs=tuple(epochs),
        diverged=diverged,
        provenance=Provenance(
            device=device_name(device),
            torch=torch.__version__,
            cuda=torch.version.cuda if cuda else None,
            cudnn=str(torch.backends.cudnn.version()) if cuda else None,  # type: ignore[no-untyped-call]
            threads=torch.get_num_threads(),
            revision=revision,
            seconds=time.monotonic() - started,
            clip_passes=clip_passes,
        ),
    )


def make_deterministic(device: torch.device) -> None:
    """Make torch compute the same bits every time, in full fp32, for the whole process.

    Call it before anything else uses a GPU: cuBLAS reads its setting once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # CUDA's 3D pools are refused as nondeterministic because windows that overlap race for a cell in the
    # backward pass. Ours never overlap, so on CUDA the refusal is a warning, and this one is not shown.
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    if device.type == "cuda":
        warnings.filterwarnings("ignore", message="(avg|max)_pool3d_.*deterministic")
    # Filling fresh memory guards against reading it unwritten; it costs a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def device_name(device: torch.device) -> str:
    """The device as results name it: `cpu`, or such as `NVIDIA H200`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _train_and_test(
    assignment: FoldAssignment,
    cache: ClipCache,
    store: ClipStore,
    device: torch.device,
    on_step: Callable[[Progress], None],
) -> tuple[list[EpochResult], bool, int]:
    hp, training = assignment.hyperparameters, assignment.training
    clip_set = store.get(
        cache,
        clahe=hp.clahe,
        study_seed=assignment.study_seed,
        augmentation=training.augmentation,
        device=device,
    )
    train_rows, test_rows = clip_set.split(assignment.test_clips)
    if len(train_rows) < 2:
        raise InvalidInput("a fold needs at least 2 clips to train on", field="test_clips")
    truth = tuple(clip_set.clips[row].label for row in test_rows.tolist())

    torch.manual_seed(assignment.seed)
    order = torch.Generator().manual_seed(assignment.seed)
    with device:
        model = build_model(
            hp,
            width=training.width,
            classes=len(assignment.classes),
            frames=training.frames,
            frame_size=training.frame_size,
            bn_momentum=training.bn_momentum,
        )
    trainer = _Trainer(
        model=model,
        optimizer=build_optimizer(hp, model.parameters(), learning_rate=training.learning_rate),
        clip_set=clip_set,
        normalization=hp.normalization,
        weights=_loss_weights(clip_set, train_rows, len(assignment.classes)) if hp.loss_weights else None,
        on_step=on_step,
    )

    epochs: list[EpochResult] = []
    diverged = False
    for epoch in range(1, training.epochs + 1):
        loss = trainer.train(epoch, shuffled_batches(train_rows, training.batch_size, order))
        diverged = loss is None
        if diverged and epochs:
            break
        tested = evaluate(
            model, clip_set, test_rows, normalization=hp.normalization, batch_size=training.batch_size
        )
        epochs.append(EpochResult(loss=loss, predicted=tested.predicted, probabilities=tested.probabilities))
        if diverged or (training.stop_when_perfect and tested.predicted == truth):
            break
    return epochs, diverged, trainer.clip_passes


def shuffled_batches(rows: Tensor, batch_size: int, order: torch.Generator) -> tuple[Tensor, ...]:
    """The rows in a new order, drawn from `order`, cut into batches of `batch_size`, the last one smaller.

    A last batch of one clip joins the one before: batch normalisation has no statistics of one value.
    """
    shuffled = rows[torch.randperm(len(rows), generator=order).to(rows.device)]
    batches = torch.split(shuffled, batch_size)
    if len(batches) > 1 and len(batches[-1]) == 1:
        return (*batches[:-2], torch.cat(batches[-2:]))
    return batches


@dataclass(kw_only=True)
class _Trainer:
    model: EmotionNet
    optimizer: Optimizer
    clip_set: ClipSet
    normalization: bool
    weights: Tensor | None
    on_step: Callable[[Progress], None]
    steps: int = 0
    clip_passes: int = 0

    def train(self, epoch: int, batches: tuple[Tensor, ...]) -> float | None:
        """One epoch; its mean loss over clips, or None as soon as that is seen not to be finite."""
        self.model.train()
        total, seen = torch.zeros((), dtype=torch.float64, device=self.clip_set.frames.device), 0
        for rows in batches:
            logits = self.model(self.clip_set.batch(rows, normalization=self.normalization))
            loss = F.cross_entropy(logits, self.clip_set.labels[rows], weight=self.weights)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

            # A sum stays not finite once it was, so it need not be looked at after every step.
            total += loss.detach() * len(rows)
            seen += len(rows)
            self.steps += 1
            self.clip_passes += len(rows)
            look = self.steps % LOSS_EVERY == 0
            mean = _finite(total / seen) if look else None
            self.on_step(Progress(epoch=epoch, step=self.steps, loss=mean))
            if look and mean is None:
                return None
        return _finite(total / seen)


def _check(assignment: FoldAssignment, cache: ClipCache) -> None:
    manifest, training = cache.manifest, assignment.training
    if (manifest.fingerprint, manifest.classes) != (assignment.fingerprint, assignment.classes):
        raise CacheMismatch(
            f"the fold is of cache {assignment.fingerprint} with classes {', '.join(assignment.classes)}, "
            f"this is {manifest.fingerprint} with {', '.join(manifest.classes)}",
            field="fingerprint",
        )
    for name, wanted, there in (
        ("frames", training.frames, manifest.frames),
        ("frame_size", training.frame_size, manifest.frame_size),
    ):
        if wanted != there:
            raise InvalidInput(
                f"training.{name} is {wanted}, the clip cache has {there}", field=f"training.{name}"
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


def _memory(device: torch.device) -> str:
    if device.type != "cuda":
        return device_name(device)
    gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"{device_name(device)} ({gib:.0f} GiB)"
