"""A batch is the same bits wherever a set's clips are, and a large set takes little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import structlog
import torch

from services.clip_cache import ClipCache
from services.contracts import ANY_CLASS, Augmentation, AugmentationCounts
from services.seeds import augmentation_seed
from tests.harness.documented_commands import PROJECT
from tests.harness.fold_tasks import CPU, TINY, assign, run, write_cache
from worker.training.augmentation import augment
from worker.training.clips import Batches, ClipSet, ClipStore, Placement
from worker.training.fit import shuffled_batches

COUNTS = {ANY_CLASS: AugmentationCounts(contrast=1), "down": AugmentationCounts(flip=1, rotation=2, contrast=1)}
AUGMENTATION = Augmentation(counts=COUNTS)


@pytest.fixture(scope="module", params=[False, True], ids=["gray", "colour"])
def cache(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> ClipCache:
    return write_cache(
        tmp_path_factory.mktemp("caches"), subjects=2, clips_of_class=2, size=16, colour=request.param
    )


def clips_of(cache: ClipCache, device: torch.device = CPU) -> ClipSet:
    return ClipStore().get(cache, clahe=False, study_seed=3, augmentation=AUGMENTATION, device=device)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.training.clips.MAX_HOST_SHARE", 0.0)


def place(
    placement: Placement, cache: ClipCache, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> ClipSet:
    with monkeypatch.context() as patched:
        patched.setattr("worker.training.clips.MAX_CLIPS_SHARE", 0.0)
        patched.setattr("worker.training.clips.MAX_HOST_SHARE", 0.0 if placement == "computed" else 1.0)
        # On a CPU the device's memory is main memory; only the way to a batch is another.
        return replace(clips_of(cache, device), placement=placement)


@pytest.mark.parametrize("device", ["cpu", *(["cuda:0"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("placement", ["host", "computed"])
def test_batches_are_the_same_bits_wherever_the_clips_are(
    cache: ClipCache, placement: Placement, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = torch.device(device)
    on_device, elsewhere = clips_of(cache, chosen), place(placement, cache, chosen, monkeypatch)
    assert (on_device.placement, elsewhere.placement) == ("device", placement)
    assert on_device.frames.shape == elsewhere.frames.shape
    assert on_device.frames.shape[0] == 12 + 4 * (1 + 4 + 1)
    rows = shuffled_batches(torch.arange(36), 5, torch.Generator().manual_seed(0))
    task = assign(cache)
    compared = 0
    for here, there in zip(
        Batches.of(task, on_device).prepared(rows), Batches.of(task, elsewhere).prepared(rows), strict=True
    ):
        assert torch.equal(here[0], there[0])
        assert torch.equal(here[1], there[1])
        assert torch.equal(here[0], Batches.of(task, elsewhere).clips(rows[compared]))
        assert torch.equal(here[1], Batches.of(task, elsewhere).labels(rows[compared]))
        compared += 1
    assert compared == 7


def test_rows_are_the_originals_then_the_copies_of_each(cache: ClipCache) -> None:
    originals = cache.frames(clahe=False)
    copies = [
        augment(
            frames,
            AUGMENTATION.counts_for(record.label),
            AUGMENTATION,
            augmentation_seed(study_seed=3, clip_id=record.clip_id),
        )
        for frames, record in zip(originals, cache.records, strict=True)
    ]
    rows = clips_of(cache).take(torch.arange(36))
    assert (rows.numpy() == np.concatenate([originals, *copies])).all()


@pytest.mark.usefixtures("no_memory")
def test_a_fold_is_the_same_without_memory_for_its_copies(
    cache: ClipCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = assign(cache, TINY.model_copy(update={"epochs": 2, "augmentation": AUGMENTATION}))
    with structlog.testing.capture_logs() as logged:
        computed = run(task, cache)
    monkeypatch.undo()
    with structlog.testing.capture_logs() as logged_later:
        in_memory = run(task, cache)
    placements = [line["placement"] for line in (*logged, *logged_later) if line["event"] == "clips_placed"]
    assert placements == ["computed", "device"]
    assert computed.epochs == in_memory.epochs


@pytest.mark.parametrize(
    ("gpu", "host", "placement"),
    [
        (None, 1000, "device"),
        (None, 100, "computed"),
        (1000, 0, "device"),
        (100, 1000, "host"),
        (100, 100, "computed"),
    ],
)
def test_where_clips_go(
    gpu: int | None, host: int, placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.training.clips import _place

    monkeypatch.setattr("worker.training.clips.free_memory", lambda device: gpu)
    monkeypatch.setattr("worker.training.clips.available_memory", lambda: host)
    with structlog.testing.capture_logs() as logged:
        assert _place(100, CPU) == placement
    assert [line["placement"] for line in logged] == [placement]


MEASURE = """
import sys
from pathlib import Path
import torch
import worker.training.clips as clips
from services.clip_cache import list_caches, open_cache
from services.contracts import ANY_CLASS, Augmentation, AugmentationCounts

def anonymous():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:")) / 1024

cache = open_cache(Path(sys.argv[1]))
counts = {ANY_CLASS: AugmentationCounts(flip=1, rotation=1, contrast=98)}
for clips.MAX_HOST_SHARE in (0.0, 0.25):
    before = anonymous()
    made = clips.ClipStore().get(
        cache, clahe=False, study_seed=0, augmentation=Augmentation(counts=counts), device=torch.device("cpu")
    )
    batches = clips.Batches(clip_set=made, normalization=False, gray_as_one_channel=True)
    highest = 0.0
    for frames, labels in batches.prepared(torch.randperm(len(made.labels)).split(30)):
        highest = max(highest, anonymous() - before)
    print(made.placement, made.frames.shape[0], round(highest), flush=True)
    del made, batches
"""


def test_a_large_set_takes_no_memory_for_its_copies(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, subjects=2, clips_of_class=2, size=112)
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, str(cache.folder)],
        cwd=PROJECT,
        # The C library returns freed memory at once, so that only what is in use is measured.
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    computed, on_device = (line.split() for line in measured.stdout.splitlines()[-3::2])
    assert computed[:2] == ["computed", "1212"]
    assert on_device[:2] == ["device", "1212"]
    # All rows are 145 MiB. A batch of 30 is 4 MiB of bytes and 14 MiB of floats.
    assert int(on_device[2]) > 120
    assert int(computed[2]) < 80
