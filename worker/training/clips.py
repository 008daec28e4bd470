"""The clips that a fold trains and tests on: bytes on the device or in main memory, or computed when needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog
import torch
from torch import Tensor

from services.clip_cache import ClipCache
from services.contracts import Augmentation, FoldTask
from services.errors import InvalidInput
from services.folds import Clip, OuterFold, outer_subjects
from services.seeds import sha256_of
from worker.training.computed_clips import ComputedClips
from worker.training.device import free_memory
from worker.training.host_memory import available_memory
from worker.training.prefetch import prefetched

log = structlog.get_logger()

MAX_CLIPS_SHARE = 0.5
"""Share of a GPU's free memory (0 to 1) that a clip set may take; larger sets stay out of it."""

MAX_HOST_SHARE = 0.25
"""Share of the main memory still available to this process (0 to 1) that a clip set may take. The copies of
larger sets are computed for each batch. A worker keeps two sets, and other workers may share the machine."""

BATCHES_AHEAD = 2
"""Batches to prepare before the training loop asks for them, if the clips are not on the device."""

Placement = Literal["device", "host", "computed"]
"""Where a clip set's rows are: on the device; in main memory while the device is a GPU; or nowhere, with the
originals memory-mapped and each copy computed when a batch needs it."""


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """All clips of a cache and their augmented copies: the originals first, in cache order."""

    clips: tuple[Clip, ...]
    frames: Tensor | ComputedClips
    """uint8, rows x frames x size x size (x 3), on the device, in main memory, or computed."""

    clip_of_row: Tensor
    """int64, rows, on the CPU: index into `clips`."""

    labels: Tensor
    """int64, rows, on the device."""

    placement: Placement = "device"
    """Where `frames` are."""

    def split(
        self,
        test_clips: Sequence[str],
        outer: OuterFold | None = None,
        validation_clips: Sequence[str] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows to train on, to test, and to choose the epoch on, int64, on the CPU.

        A fold trains on all clips that it neither tests nor chooses the epoch on, with their copies, except
        those of subjects in the outer fold. It tests the originals only, in the order of `test_clips` and
        `validation_clips`.

        Raises:
            InvalidInput: a clip is unknown, no clip remains to train on, or a subject has clips on two sides.
        """
        test = self._rows_of(test_clips, field="test_clips")
        validation = self._rows_of(validation_clips, field="validation_clips")
        held_out = outer_subjects(self.clips, outer)
        outer_clips = [index for index, clip in enumerate(self.clips) if clip.subject in held_out]
        excluded = torch.cat([test, validation, torch.tensor(outer_clips, dtype=torch.int64)])
        train = torch.nonzero(~torch.isin(self.clip_of_row, excluded)).flatten()

        tested, validated, trained = (
            {self.clips[i].subject for i in rows.tolist()}
            for rows in (test, validation, self.clip_of_row[train])
        )
        if leaked := tested & trained:
            raise InvalidInput(
                f"subject {min(leaked)} is tested and trained on; a fold must test all clips of its subjects",
                field="test_clips",
            )
        if not tested or not trained:
            raise InvalidInput("a fold needs clips to train on and clips to test", field="test_clips")
        if leaked := validated & (tested | trained | held_out):
            raise InvalidInput(
                f"subject {min(leaked)} chooses the epoch and is tested, trained on or in the outer fold; a "
                "fold must use all clips of a subject for one purpose",
                field="validation_clips",
            )
        return train, test, validation

    def everything(self) -> tuple[Tensor, Tensor]:
        """All rows to train on, and the originals to test, ordered by clip id: int64, on the CPU."""
        order = sorted(range(len(self.clips)), key=lambda index: self.clips[index].clip_id)
        return torch.arange(len(self.labels)), torch.tensor(order, dtype=torch.int64)

    def _rows_of(self, clip_ids: Sequence[str], *, field: str) -> Tensor:
        index_of = {clip.clip_id: index for index, clip in enumerate(self.clips)}
        if unknown := [clip_id for clip_id in clip_ids if clip_id not in index_of]:
            raise InvalidInput(f"{field}: clip {unknown[0]!r} is not in the clip cache", field=field)
        return torch.tensor([index_of[clip_id] for clip_id in clip_ids], dtype=torch.int64)

    @property
    def device(self) -> torch.device:
        """The device that batches are made on."""
        return self.labels.device

    @property
    def channels(self) -> int:
        """1 for gray clips, 3 for colour."""
        return 1 if len(self.frames.shape) == 4 else 3

    def take(self, rows: Tensor) -> Tensor:
        """The frames of these rows on the device: uint8, rows x frames x size x size (x 3)."""
        if self.placement == "device" and isinstance(self.frames, Tensor):
            return self.frames[rows.to(self.device)]
        return self._load(rows.cpu()).to(self.device, non_blocking=True)

    def loaded(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Frames as `take` gives them, and labels, of each batch of rows, on the device.

        If the frames are not there, the next batches are prepared while the caller uses this one: a thread
        reads or computes them, and a GPU copies them beside its computation.
        """
        if self.placement == "device":
            # One copy of all indexes to a GPU; each batch would wait for its own.
            all_rows = torch.cat(list(batches)).to(self.device)
            for rows in torch.split(all_rows, [len(rows) for rows in batches]):
                yield self.take(rows), self.labels[rows]
        elif self.device.type == "cuda":
            yield from self._loaded_to_gpu(batches)
        else:
            for frames, rows in prefetched(lambda rows: (self._load(rows), rows), batches, ahead=BATCHES_AHEAD):
                yield frames, self.labels[rows]

    def _loaded_to_gpu(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        computing = torch.cuda.current_stream(self.device)
        copying = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

        def load(rows: Tensor) -> tuple[Tensor, Tensor, torch.cuda.Event]:
            frames, indexes = self._load(rows), rows.pin_memory()
            with torch.cuda.stream(copying):
                # torch gives a pinned buffer to nobody else before the copies from it are done.
                on_gpu = frames.to(self.device, non_blocking=True)
                indexes_on_gpu = indexes.to(self.device, non_blocking=True)
                return on_gpu, indexes_on_gpu, copying.record_event()

        for frames, rows, copied in prefetched(load, batches, ahead=BATCHES_AHEAD):
            computing.wait_event(copied)
            # Their memory belongs to the other stream, which must not reuse it before this one has read it.
            frames.record_stream(computing)
            rows.record_stream(computing)
            yield frames, self.labels[rows]

    def _load(self, rows: Tensor) -> Tensor:
        """Frames of some rows in main memory, pinned if the device is a GPU; `rows` on the CPU."""
        frames = torch.empty(
            (len(rows), *self.frames.shape[1:]), dtype=torch.uint8, pin_memory=self.device.type == "cuda"
        )
        if isinstance(self.frames, Tensor):
            return torch.index_select(self.frames, 0, rows, out=frames)
        self.frames.load(rows, frames)
        return frames

    def batch(self, rows: Tensor, *, normalization: bool, gray_as_one_channel: bool = True) -> Tensor:
        """The clips of these rows as network input: floats, batch x channels x frames x size x size.

        Values are in [0, 1], or with `normalization` in [-1, 1] (paper sections 4.1, 3.3). A gray clip has
        one channel, or three that are views of one.
        """
        return network_input(
            self.take(rows), normalization=normalization, gray_as_one_channel=gray_as_one_channel
        )


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

    def prepared(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Network input and labels of each batch of rows, in order, on the device; see `ClipSet.loaded`.

        Args:
            batches: int64 rows, on the CPU.
        """
        for frames, labels in self.clip_set.loaded(batches):
            clips = network_input(
                frames, normalization=self.normalization, gray_as_one_channel=self.gray_as_one_channel
            )
            yield clips, labels

    def clips(self, rows: Tensor) -> Tensor:
        """Network input of these rows; see `ClipSet.batch`."""
        return self.clip_set.batch(
            rows, normalization=self.normalization, gray_as_one_channel=self.gray_as_one_channel
        )

    def labels(self, rows: Tensor) -> Tensor:
        """True labels of these rows: int64, on the device."""
        return self.clip_set.labels[rows.to(self.clip_set.device)]

    def random(self, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Clips and labels of `size` rows drawn with replacement, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(self.clip_set.labels), (size,), generator=generator)
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
    clips = cache.clips()
    computed = ComputedClips(
        cache.frames(clahe=clahe),
        [clip.clip_id for clip in clips],
        [augmentation.counts_for(record.label) for record in cache.records],
        augmentation,
        study_seed=study_seed,
    )
    placement = _place(computed.nbytes, device)
    frames: Tensor | ComputedClips = computed
    if placement != "computed":
        frames = computed.materialize(device if placement == "device" else torch.device("cpu"))
    labels = torch.tensor([clip.label for clip in clips])[computed.clip_of_row]
    return ClipSet(
        clips=clips,
        frames=frames,
        clip_of_row=computed.clip_of_row,
        labels=labels.to(device),
        placement=placement,
    )


def _place(size: int, device: torch.device) -> Placement:
    """Where to put a clip set of `size` bytes."""
    on_gpu, on_host = free_memory(device), available_memory()
    placement: Placement = "computed"
    if on_gpu is not None and size <= on_gpu * MAX_CLIPS_SHARE:
        placement = "device"
    elif size <= on_host * MAX_HOST_SHARE:
        placement = "device" if on_gpu is None else "host"
    log.info(
        "clips_placed",
        placement=placement,
        device=str(device),
        clips_mib=size >> 20,
        free_gpu_mib=None if on_gpu is None else on_gpu >> 20,
        free_host_mib=on_host >> 20,
    )
    return placement
