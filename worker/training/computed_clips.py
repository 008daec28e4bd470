"""Windows of clips and their augmented copies, read and computed whenever they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np
import torch
from torch import Tensor

from services.contracts import Augmentation, AugmentationCounts
from services.seeds import augmentation_seed
from worker.training.augmentation import Frames, copies_of, make_copy

COPY_THREADS = 4
"""Maximum number of threads that compute augmented copies."""

ROWS_PER_PART = 256
"""Rows that `materialize` computes before it moves them to the device."""


class ComputedClips:
    """The rows of a clip set without their memory: the originals first, then the copies of each, in its order.

    An original is a window of a clip. Originals are held as they are given, which may be memory-mapped. A row
    is the same bits whenever and by whichever thread it is computed.
    """

    def __init__(
        self,
        originals: Frames,
        clip_ids: Sequence[str],
        counts: Sequence[AugmentationCounts],
        augmentation: Augmentation,
        *,
        study_seed: int,
        windows: int = 1,
    ) -> None:
        """Nothing is read or computed yet.

        Args:
            originals: uint8, (clips * windows) x frames x size x size (x 3), the windows of a clip one after
                another.
            clip_ids: the id of each clip.
            counts: the copies of each window of each clip.
            augmentation: how copies are made.
            study_seed: decides, with a clip's id and the number of the window, its copies.
            windows: of each clip.
        """
        # A plain view of a memory map: each index of a `memmap` would make another one.
        self._originals = np.asarray(originals)
        self._clip_ids = clip_ids
        self._counts = counts
        self._augmentation = augmentation
        self._study_seed = study_seed
        self._windows = windows
        copies = np.array([copies_of(each) for each in counts], np.int64).repeat(windows)
        numbers = np.arange(len(originals))
        self._original_of_row = np.concatenate([numbers, numbers.repeat(copies)])
        self._first_copy = len(originals) + np.cumsum(copies) - copies
        self._threads = ThreadPoolExecutor(
            min(COPY_THREADS, torch.get_num_threads()), thread_name_prefix="augmentation"
        )

    @property
    def clip_of_row(self) -> Tensor:
        """int64, rows: index of each row's clip."""
        return torch.from_numpy(self._original_of_row // self._windows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows x frames x size x size (x 3)."""
        return (len(self._original_of_row), *self._originals.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes that all rows would take."""
        return prod(self.shape)

    def load(self, rows: Tensor, out: Tensor) -> None:
        """Read or compute some rows.

        Args:
            rows: int64, on the CPU.
            out: uint8, rows x frames x size x size (x 3), on the CPU; is filled.
        """
        filled = out.numpy()

        def load_one(position: int, row: int) -> None:
            filled[position] = self._row(row)

        # The list waits for all of them and raises what one of them raised.
        list(self._threads.map(load_one, range(len(rows)), rows.tolist()))

    def materialize(self, device: torch.device) -> Tensor:
        """All rows on a device; beside a GPU's memory this takes main memory for a few rows only."""
        frames = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for first in range(0, len(frames), ROWS_PER_PART):
            part = frames[first : first + ROWS_PER_PART]
            computed = part if part.is_cpu else torch.empty(part.shape, dtype=torch.uint8)
            self.load(torch.arange(first, first + len(part)), computed)
            if computed is not part:
                part.copy_(computed)
        return frames

    def _row(self, row: int) -> Frames:
        number = int(self._original_of_row[row])
        original: Frames = self._originals[number]
        if row < len(self._originals):
            return original
        clip, window = divmod(number, self._windows)
        return make_copy(
            original,
            row - int(self._first_copy[number]),
            self._counts[clip],
            self._augmentation,
            augmentation_seed(study_seed=self._study_seed, clip_id=self._clip_ids[clip], window=window),
        )
