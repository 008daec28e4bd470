"""The baseline of the training benchmark: a fold as a competent researcher would train it in PyTorch.

It has a `Dataset` that augments each clip with OpenCV when it is loaded, a `DataLoader` with worker processes,
the network written layer by layer with `nn.Conv3d`, eager fp32 and `torch.optim.Adam`, and it trains all
epochs. It reads the same clip cache and trains on the same number of clips per epoch as the worker, but shares
no code with it. It is a fair baseline: cuDNN chooses its algorithms by measurement, nothing is forced to be
deterministic, OpenCV does not compete with the loader's processes for cores, test clips stay on the device, and
no step waits for the GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from services.clip_cache import ClipCache
from services.contracts import Augmentation, TrainingSettings
from services.errors import InvalidInput
from services.search_space import Hyperparameters

Kind = Literal["original", "flip", "rotation", "contrast"]
Frames = NDArray[np.uint8]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ELU": nn.ELU,
    "pReLU": nn.PReLU,
    "leaky ReLU": nn.LeakyReLU,
    "Mish": nn.Mish,
}


@dataclass(frozen=True, kw_only=True)
class NaiveResult:
    """Results and cost of a fold."""

    predicted: tuple[tuple[int, ...], ...]
    """Predicted labels of the test clips after each epoch, in the order of `test_clips`."""

    best_epoch: int
    """Index from 0 of the earliest epoch with the most correct test clips."""

    accuracy: float
    """Accuracy of the best epoch."""

    clip_passes: int
    """Training clips passed forward and backward."""

    train_seconds: float
    """Seconds in the training loops, including loading."""

    seconds: float
    """Seconds in total, from the initial weights to the last prediction."""


def run_naive_fold(
    cache: ClipCache,
    test_clips: Sequence[str],
    hp: Hyperparameters,
    training: TrainingSettings,
    *,
    seed: int,
    device: torch.device,
    loader_workers: int = 2,
    max_steps: int | None = None,
    on_step: Callable[[], None] | None = None,
    tf32: bool = False,
) -> NaiveResult:
    """Train on all clips except the test clips, and test after every epoch.

    Args:
        cache: the clip cache.
        test_clips: ids of the fold's test clips.
        hp: the hyper-parameters.
        training: sizes, epochs and augmentation.
        seed: seed of weights, clip order, dropout and augmentation.
        device: device to train on.
        loader_workers: number of processes that load and augment; 0 means this process.
        max_steps: number of optimiser steps after which to test once more and return; None means no limit.
        on_step: called after every step; it must synchronise the device to time steps.
        tf32: whether a GPU multiplies in TF32, as PyTorch does by default in convolutions.

    Returns:
        Predictions, counts and times.

    Raises:
        InvalidInput: the training has a setting that this baseline does not support.
    """
    if training.batch_norm != "before activation" or not training.pool_counts_padding or training.pretrained:
        raise InvalidInput(
            "the naive baseline supports only the paper's network, without pretraining", field="training"
        )
    started = time.monotonic()
    torch.manual_seed(seed)
    train_set = AugmentedClips(cache, test_clips, hp, training.augmentation)
    loader = _loader(train_set, training.batch_size, loader_workers, seed, device)
    network = NaiveNet(hp, training, classes=len(cache.manifest.classes)).to(device)
    optimizer = _optimizer(hp, network, training.learning_rate)
    weights = _class_weights(train_set, cache).to(device) if hp.loss_weights else None
    criterion = nn.CrossEntropyLoss(weight=weights)
    tests, truth = _test_clips(cache, test_clips, hp, device)

    predicted: list[tuple[int, ...]] = []
    clip_passes, steps, train_seconds = 0, 0, 0.0
    with _backends(tf32):
        while len(predicted) < training.epochs and steps != max_steps:
            epoch_started = time.monotonic()
            network.train()
            for inputs, labels in loader:
                optimizer.zero_grad()
                logits = network(inputs.to(device, non_blocking=True))
                criterion(logits, labels.to(device, non_blocking=True)).backward()
                optimizer.step()
                clip_passes += len(labels)
                steps += 1
                if on_step is not None:
                    on_step()
                if steps == max_steps:
                    break
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            train_seconds += time.monotonic() - epoch_started
            predicted.append(_predict(network, tests, training.batch_size))
    accuracies = [float(np.mean(np.array(labels) == truth)) for labels in predicted]
    return NaiveResult(
        predicted=tuple(predicted),
        best_epoch=int(np.argmax(accuracies)),
        accuracy=max(accuracies),
        clip_passes=clip_passes,
        train_seconds=train_seconds,
        seconds=time.monotonic() - started,
    )


# --- Data -------------------------------------------------------------------------------------------------


class AugmentedClips(Dataset[tuple[Tensor, int]]):
    """Each training clip, followed by its augmented copies, which are drawn again in every epoch."""

    def __init__(
        self, cache: ClipCache, test_clips: Sequence[str], hp: Hyperparameters, settings: Augmentation
    ) -> None:
        """Map the frames into memory without reading them; the loader's processes share them."""
        self._frames = cache.frames(clahe=hp.clahe)
        self.samples: list[tuple[int, int, Kind]] = []
        """Row in the cache, label, and kind of augmentation."""

        self._settings = settings
        self._normalization = hp.normalization
        tested = set(test_clips)
        for row, (clip, record) in enumerate(zip(cache.clips(), cache.records, strict=True)):
            if clip.clip_id in tested:
                continue
            counts = settings.counts_for(record.label)
            kinds: list[Kind] = ["original"]
            kinds += ["flip"] * counts.flip
            kinds += ["rotation"] * counts.rotation
            kinds += ["contrast"] * counts.contrast
            self.samples += [(row, clip.label, kind) for kind in kinds]

    def __len__(self) -> int:
        """Number of clips per epoch."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A clip as floats, 3 x frames x size x size, and its label."""
        row, label, kind = self.samples[index]
        clip: Frames = self._frames[row]
        if kind == "flip":
            clip = clip[:, :, ::-1]
        elif kind == "rotation":
            clip = self._rotated(clip, np.random.uniform(-1, 1) * self._settings.rotation_degrees)
        elif kind == "contrast":
            multiplier = np.random.uniform(self._settings.contrast_low, self._settings.contrast_high)
            table = np.clip(127 + multiplier * (np.arange(256) - 127.0), 0, 255)
            clip = np.rint(table).astype(np.uint8)[clip]
        return to_input(clip, self._normalization), label

    def _rotated(self, clip: Frames, degrees: float) -> Frames:
        height, width = clip.shape[1:3]
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
        border = cv2.BORDER_CONSTANT if self._settings.border == "black" else cv2.BORDER_REPLICATE
        turned = np.empty_like(clip)
        for frame, target in zip(clip, turned, strict=True):
            cv2.warpAffine(
                frame, matrix, (width, height), dst=target, flags=cv2.INTER_LINEAR, borderMode=border
            )
        return turned


def to_input(clip: Frames, normalization: bool) -> Tensor:
    """Convert bytes, frames x size x size (x 3), to floats, 3 x frames x size x size.

    The values are in [0, 1], with normalization in [-1, 1]. Gray frames become three views of the same channel;
    batching copies them.
    """
    values = torch.from_numpy(clip.astype(np.float32)).div_(255)
    if normalization:
        values = values.mul_(2).sub_(1)
    return values.expand(3, *values.shape) if values.dim() == 3 else values.permute(3, 0, 1, 2)


def _loader(
    data: AugmentedClips, batch_size: int, workers: int, seed: int, device: torch.device
) -> DataLoader[tuple[Tensor, int]]:
    # Batch normalisation cannot train on a last batch of one clip.
    return DataLoader(
        data,
        batch_size=batch_size,
        shuffle=True,
        drop_last=len(data) % batch_size == 1,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(seed),
    )


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    np.random.seed(torch.initial_seed() % 2**32)


def _test_clips(
    cache: ClipCache, test_clips: Sequence[str], hp: Hyperparameters, device: torch.device
) -> tuple[Tensor, list[int]]:
    """All test clips as one batch on the device, and their labels."""
    clips, frames = cache.clips(), cache.frames(clahe=hp.clahe)
    row_of = {clip.clip_id: row for row, clip in enumerate(clips)}
    rows = [row_of[clip_id] for clip_id in test_clips]
    inputs = torch.stack([to_input(frames[row], hp.normalization) for row in rows])
    return inputs.to(device), [clips[row].label for row in rows]


def _class_weights(data: AugmentedClips, cache: ClipCache) -> Tensor:
    recorded = [label for _, label, kind in data.samples if kind == "original"]
    counts = torch.tensor(recorded).bincount(minlength=len(cache.manifest.classes)).float()
    weights = torch.where(counts > 0, 1 / counts, 0)
    return weights / weights[counts > 0].mean()


# --- Network ----------------------------------------------------------------------------------------------


class NaiveNet(nn.Module):
    """The paper's 3D-CNN, layer by layer."""

    def __init__(self, hp: Hyperparameters, training: TrainingSettings, *, classes: int) -> None:
        """Initialise weights with Xavier from torch's global random generator, and biases with zero."""
        super().__init__()
        w, second = training.width, hp.second_conv_layer
        pool = nn.AvgPool3d if hp.pooling_layer == "AvgPooling" else nn.MaxPool3d
        activation = ACTIVATIONS[hp.activation]

        def conv(inputs: int, filters: int) -> nn.Module:
            t = hp.temporal_size
            return nn.Sequential(
                nn.Conv3d(inputs, filters, kernel_size=(t, 3, 3), padding=(t // 2, 1, 1), bias=False),
                nn.BatchNorm3d(filters, momentum=training.bn_momentum),
                activation(),
            )

        self.group1 = nn.Sequential(conv(3, w), *([conv(w, w)] if second else []))
        self.pool1 = pool((1, 2, 2))
        self.group2 = nn.Sequential(conv(w, 2 * w), *([conv(2 * w, 2 * w)] if second else []))
        self.pool2 = pool((2, 2, 2))
        self.group3 = nn.Sequential(conv(2 * w, 4 * w), conv(4 * w, 4 * w))
        self.pool3 = pool((2, 2, 2))
        self.group4 = nn.Sequential(conv(4 * w, 8 * w), conv(8 * w, 8 * w))
        self.pool4 = pool((2, 2, 2))
        self.group5 = nn.Sequential(conv(8 * w, 8 * w), conv(8 * w, 8 * w))
        self.pool5 = pool(kernel_size=(1, 2, 2), stride=(2, 2, 2), padding=(0, 1, 1))
        side = training.frame_size // 16 // 2 + 1
        time_left = (training.frames // 8 - 1) // 2 + 1
        self.classifier = nn.Sequential(
            nn.Linear(8 * w * time_left * side * side, 64 * w),
            activation(),
            nn.Dropout(hp.dropout),
            nn.Linear(64 * w, 64 * w),
            activation(),
            nn.Dropout(hp.dropout),
            nn.Linear(64 * w, classes),
        )
        draw = nn.init.xavier_uniform_ if hp.initializer == "Xavier uniform" else nn.init.xavier_normal_
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                draw(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits, batch x classes, for clips of batch x 3 x frames x size x size."""
        x = self.pool1(self.group1(clips))
        x = self.pool2(self.group2(x))
        x = self.pool3(self.group3(x))
        x = self.pool4(self.group4(x))
        x = self.pool5(self.group5(x))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


def _optimizer(hp: Hyperparameters, network: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    adam = torch.optim.Adam(network.parameters(), lr=learning_rate)
    if hp.optimization == "Adam":
        return adam
    from pytorch_optimizer import Lookahead

    lookahead: torch.optim.Optimizer = Lookahead(adam, k=5, alpha=0.5)
    return lookahead


@torch.no_grad()
def _predict(network: nn.Module, tests: Tensor, batch_size: int) -> tuple[int, ...]:
    network.eval()
    labels = torch.cat([network(part).argmax(dim=1) for part in torch.split(tests, batch_size)])
    return tuple(labels.tolist())


@contextmanager
def _backends(tf32: bool) -> Iterator[None]:
    """Set torch's switches as in a new process, but let cuDNN choose its algorithms by measurement."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    previous = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        cudnn.allow_tf32,
        matmul.allow_tf32,
    )
    torch.use_deterministic_algorithms(False)
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, tf32, tf32
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(previous[0], warn_only=previous[1])
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = previous[2:]
