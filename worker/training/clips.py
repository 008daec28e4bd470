"""The clips that a fold trains and tests on, kept on the device as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from torch import Tensor

from services.clip_cache import ClipCache
from services.contracts import Augmentation, FoldTask
from services.errors import InvalidInput
from services.folds import Clip, OuterFold, outer_subjects
from services.seeds import augmentation_seed, sha256_of
from worker.training.augmentation import augment, copies_of
from worker.training.device import free_memory

log = structlog.get_logger()

MAX_CLIPS_SHARE = 0.5
"""Share of a GPU's free memory (0 to 1) that clips may take; larger sets stay on the host."""


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """All clips of a cache and their augmented copies: the originals first, in cache order."""

    clips: tuple[Clip, ...]
    frames: Tensor
    """uint8, rows x frames x size x size (x 3), on the device, or on the host if they do not fit there."""

    clip_of_row: Tensor
    """int64, rows, on the CPU: index into `clips`."""

    labels: Tensor
    """int64, rows, on the device."""

    def split(self, test_clips: Sequence[str], outer: OuterFold | None = None) -> tuple[Tensor, Tensor]:
        """Rows to train on and rows to test, int64, on the device.

        A fold trains on all clips that it does not test, with their copies, except those of subjects in the
        outer fold. It tests the originals only, in the order of `test_clips`.

        Raises:
            InvalidInput: a test clip is unknown, no clip remains to train on, or a tested subject has another
                clip that the fold would train on.
        """
        index_of = {clip.clip_id: index for index, clip in enumerate(self.clips)}
        if unknown := [clip_id for clip_id in test_clips if clip_id not in index_of]:
            raise InvalidInput(f"test clip {unknown[0]!r} is not in the clip cache", field="test_clips")
        test = torch.tensor([index_of[clip_id] for clip_id in test_clips], dtype=torch.int64)
        held_out = outer_subjects(self.clips, outer)
        outer_clips = [index for index, clip in enumerate(self.clips) if clip.subject in held_out]
        excluded = torch.cat([test, torch.tensor(outer_clips, dtype=torch.int64)])
        train = torch.nonzero(~torch.isin(self.clip_of_row, excluded)).flatten()

        tested = {self.clips[i].subject for i in test.tolist()}
        trained = {self.clips[i].subject for i in self.clip_of_row[train].tolist()}
        if leaked := tested & trained:
            raise InvalidInput(
                f"subject {min(leaked)} is tested and trained on; a fold must test all clips of its subjects",
                field="test_clips",
            )
        if not tested or not trained:
            raise InvalidInput("a fold needs clips to train on and clips to test", field="test_clips")
        return train.to(self.device), test.to(self.device)

    def everything(self) -> tuple[Tensor, Tensor]:
        """Rows to train on (all of them), and rows to test (the originals, ordered by clip id)."""
        order = sorted(range(len(self.clips)), key=lambda index: self.clips[index].clip_id)
        rows = torch.arange(len(self.labels), device=self.device)
        return rows, torch.tensor(order, dtype=torch.int64, device=self.device)

    @property
    def device(self) -> torch.device:
        """The device that batches are made on."""
        return self.labels.device

    @property
    def channels(self) -> int:
        """1 for gray clips, 3 for colour."""
        return 1 if self.frames.dim() == 4 else 3

    def batch(self, rows: Tensor, *, normalization: bool, gray_as_one_channel: bool = True) -> Tensor:
        """The clips of these rows as network input: floats, batch x channels x frames x size x size.

        Values are in [0, 1], or with `normalization` in [-1, 1] (paper sections 4.1, 3.3). A gray clip has
        one channel, or three that are views of one.
        """
        frames = self.frames[rows.to(self.frames.device)].to(self.device)
        return network_input(frames, normalization=normalization, gray_as_one_channel=gray_as_one_channel)


def network_input(frames: Tensor, *, normalization: bool, gray_as_one_channel: bool = True) -> Tensor:
    """Network input (see `ClipSet.batch`) from uint8 clips, batch x frames x size x size (x 3)."""
    values = frames.to(torch.get_default_dtype())
    values = values / 127.5 - 1 if normalization else values / 255
    if frames.dim() == 5:
        return values.permute(0, 4, 1, 2, 3)
    return values.unsqueeze(1) if gray_as_one_channel else values.unsqueeze(1).expand(-1, 3, -1, -1, -1)


@dataclass(frozen=True, kw_only=True)
class Batches:
    """A clip set as one task's network takes its clips."""

    clip_set: ClipSet
    normalization: bool
    gray_as_one_channel: bool

    @staticmethod
    def of(task: FoldTask, clip_set: ClipSet) -> Batches:
        """The set's clips, scaled as the task's hyper-parameters say."""
        return Batches(
            clip_set=clip_set,
            normalization=task.hyperparameters.normalization,
            gray_as_one_channel=task.economies.gray_as_one_channel,
        )

    @property
    def channels(self) -> int:
        """Channels of a batch: 1 for gray clips taken as one channel, 3 otherwise."""
        return 1 if self.clip_set.channels == 1 and self.gray_as_one_channel else 3

    def clips(self, rows: Tensor) -> Tensor:
        """Network input of these rows; see `ClipSet.batch`."""
        return self.clip_set.batch(
            rows, normalization=self.normalization, gray_as_one_channel=self.gray_as_one_channel
        )

    def labels(self, rows: Tensor) -> Tensor:
        """True labels of these rows: int64, on the device."""
        return self.clip_set.labels[rows]

    def random(self, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Clips and labels of `size` rows drawn with replacement, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(self.clip_set.labels), (size,), generator=generator).to(self.clip_set.device)
        return self.clips(rows), self.labels(rows)


class ClipStore:
    """Keeps the two clip sets used last: one without and one with CLAHE serve all folds of a study."""

    def __init__(self) -> None:
        """Start empty."""
        self._kept: dict[str, ClipSet] = {}

    def get(
        self,
        cache: ClipCache,
        *,
        clahe: bool,
        study_seed: int,
        augmentation: Augmentation,
        device: torch.device,
    ) -> ClipSet:
        """The cache's clips, or their CLAHE variant, with their augmented copies; built if not kept."""
        key = sha256_of(
            [cache.manifest.fingerprint, clahe, study_seed, augmentation.model_dump(mode="json"), str(device)]
        )
        kept = self._kept.pop(key, None)
        # Free memory first: two sets and a third under construction may not fit the device together.
        while len(self._kept) > 1:
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = kept or _build(cache, clahe, study_seed, augmentation, device)
        return self._kept[key]


def _build(
    cache: ClipCache, clahe: bool, study_seed: int, augmentation: Augmentation, device: torch.device
) -> ClipSet:
    clips, originals = cache.clips(), cache.frames(clahe=clahe)
    counts = [augmentation.counts_for(record.label) for record in cache.records]
    copies = [copies_of(count) for count in counts]
    frames = np.empty((len(clips) + sum(copies), *originals.shape[1:]), np.uint8)
    frames[: len(clips)] = originals
    end = len(clips)
    for i, clip in enumerate(clips):
        start, end = end, end + copies[i]
        seed = augmentation_seed(study_seed=study_seed, clip_id=clip.clip_id)
        frames[start:end] = augment(originals[i], counts[i], augmentation, seed)
    clip_of_row = torch.arange(len(clips))
    clip_of_row = torch.cat([clip_of_row, clip_of_row.repeat_interleave(torch.tensor(copies))])
    labels = torch.tensor([clip.label for clip in clips])[clip_of_row]
    return ClipSet(
        clips=clips,
        frames=_on_device(torch.from_numpy(frames), device, free_memory(device)),
        clip_of_row=clip_of_row,
        labels=labels.to(device),
    )


def _on_device(frames: Tensor, device: torch.device, free: int | None) -> Tensor:
    """The frames on the device, or on the host if they need more than `MAX_CLIPS_SHARE` of its free bytes."""
    if free is not None and frames.nbytes > free * MAX_CLIPS_SHARE:
        log.warning("clips_on_host", clips_mib=frames.nbytes >> 20, free_mib=free >> 20, device=str(device))
        return frames
    return frames.to(device)
