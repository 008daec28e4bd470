"""The clips that a fold trains on and is tested on, resident on the device as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from torch import Tensor

from services.clip_cache import ClipCache
from services.contracts import Augmentation
from services.errors import InvalidInput
from services.folds import Clip, OuterFold, outer_subjects
from services.seeds import augmentation_seed, sha256_of
from worker.training.augmentation import augment, copies_of
from worker.training.device import free_memory

log = structlog.get_logger()

CLIPS_SHARE = 0.5
"""Of a GPU's free memory, what clips may take; the rest is the network's."""


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """All clips of a cache and their augmented copies: the originals first, in cache order."""

    clips: tuple[Clip, ...]
    frames: Tensor
    """uint8, rows x frames x size x size (x 3), on the device, or on the host where that is too small."""

    clip_of_row: Tensor
    """int64, rows, on the CPU: index into `clips`."""

    labels: Tensor
    """int64, rows, on the device."""

    def split(self, test_clips: Sequence[str], outer: OuterFold | None = None) -> tuple[Tensor, Tensor]:
        """Rows to train on and rows to test, int64, on the device.

        Trained on are all clips that are not tested, with their copies, but for those of the subjects of the
        outer fold. Tested are the originals alone, in the order of `test_clips`.

        Raises:
            InvalidInput: a test clip is unknown, none is left to train on, or a tested subject has another
                clip that would be trained on.
        """
        place = {clip.clip_id: i for i, clip in enumerate(self.clips)}
        if unknown := [clip_id for clip_id in test_clips if clip_id not in place]:
            raise InvalidInput(f"test clip {unknown[0]!r} is not in the clip cache", field="test_clips")
        test = torch.tensor([place[clip_id] for clip_id in test_clips], dtype=torch.int64)
        left_out = outer_subjects(self.clips, outer)
        away = [place for place, clip in enumerate(self.clips) if clip.subject in left_out]
        away_or_tested = torch.cat([test, torch.tensor(away, dtype=torch.int64)])
        train = torch.nonzero(~torch.isin(self.clip_of_row, away_or_tested)).flatten()

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
        """Rows to train on, which are all, and to test, which are the originals in the order of their ids."""
        order = sorted(range(len(self.clips)), key=lambda place: self.clips[place].clip_id)
        rows = torch.arange(len(self.labels), device=self.device)
        return rows, torch.tensor(order, dtype=torch.int64, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where batches are made for."""
        return self.labels.device

    @property
    def channels(self) -> int:
        """1 for gray clips, 3 for colour."""
        return 1 if self.frames.dim() == 4 else 3

    def batch(self, rows: Tensor, *, normalization: bool, gray_as_one_channel: bool = True) -> Tensor:
        """The clips of these rows as the network takes them: floats, batch x channels x frames x size x size.

        Values are in [0, 1], or with `normalization` in [-1, 1] (paper sections 4.1, 3.3). A gray clip has
        one channel, or three that are views of one.
        """
        frames = self.frames[rows.to(self.frames.device)].to(self.device)
        return network_input(frames, normalization=normalization, gray_as_one_channel=gray_as_one_channel)


def network_input(frames: Tensor, *, normalization: bool, gray_as_one_channel: bool = True) -> Tensor:
    """Clips as the network takes them, of uint8, batch x frames x size x size (x 3); see `ClipSet.batch`."""
    values = frames.to(torch.get_default_dtype())
    values = values / 127.5 - 1 if normalization else values / 255
    if frames.dim() == 5:
        return values.permute(0, 4, 1, 2, 3)
    return values.unsqueeze(1) if gray_as_one_channel else values.unsqueeze(1).expand(-1, 3, -1, -1, -1)


class ClipStore:
    """Keeps the clip sets last used: a plain one and a CLAHE one serve all folds and trials of a study."""

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
        """The cache's clips, or their CLAHE variant, with their augmented copies; made if not at hand."""
        key = sha256_of(
            [cache.manifest.fingerprint, clahe, study_seed, augmentation.model_dump(mode="json"), str(device)]
        )
        kept = self._kept.pop(key, None)
        # Room is made first: two sets and a third being built may not fit a device together.
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
        frames=_place(torch.from_numpy(frames), device, free_memory(device)),
        clip_of_row=clip_of_row,
        labels=labels.to(device),
    )


def _place(frames: Tensor, device: torch.device, free: int | None) -> Tensor:
    """The frames on the device, or on the host where they would take more than half of its free bytes."""
    if free is not None and frames.nbytes > free * CLIPS_SHARE:
        log.warning("clips_on_host", clips_mib=frames.nbytes >> 20, free_mib=free >> 20, device=str(device))
        return frames
    return frames.to(device)
