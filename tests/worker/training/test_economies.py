"""Every way to do less work gives what the long way gives: proven on small networks in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from services.clip_cache import ClipCache
from services.contracts import Economies, FoldResult, FoldTask, TrainingSettings
from tests.harness.fold_tasks import CPU, TINY, assign, run, write_cache
from worker.training.clips import Batches
from worker.training.network import Network, NetworkSettings
from worker.training.optim import build_optimizer
from worker.training.training_device import TrainingDevice

EPOCHS = 5
ALL = Economies()
NONE = Economies(stop_when_perfect=False, skip_dead_taps=False, gray_as_one_channel=False, reuse_folds=False)
CONFIGURATIONS = [
    {"temporal_size": 3},
    pytest.param(
        {"temporal_size": 9, "activation": "Mish", "optimization": "Lookahead+Adam"}, marks=pytest.mark.long
    ),
    {"temporal_size": 5, "second_conv_layer": True, "pooling_layer": "MaxPooling", "activation": "ELU"},
    pytest.param(
        {"temporal_size": 7, "activation": "pReLU", "loss_weights": True, "normalization": True},
        marks=pytest.mark.long,
    ),
    {"temporal_size": 1, "dropout": 0.0},
]


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ClipCache:
    return write_cache(tmp_path_factory.mktemp("caches"), subjects=3, clips_of_class=3, size=16)


@pytest.mark.parametrize("economy", ["skip_dead_taps", "gray_as_one_channel"])
@pytest.mark.parametrize("hyperparameters", CONFIGURATIONS)
def test_an_economy_changes_no_label_of_any_epoch(
    cache: ClipCache, economy: str, hyperparameters: dict[str, Any]
) -> None:
    switches = [NONE.model_copy(update={economy: on}) for on in (True, False)]
    with_it, without = (run(_task(cache, economies, **hyperparameters), cache) for economies in switches)
    assert len(with_it.epochs) == EPOCHS
    assert len({label for epoch in with_it.epochs for label in epoch.predicted}) > 1
    _assert_equal(with_it, without)


@pytest.mark.parametrize("hyperparameters", CONFIGURATIONS)
def test_logits_agree_within_1e_9_after_training(cache: ClipCache, hyperparameters: dict[str, Any]) -> None:
    long_way = _logits(_task(cache, NONE, **hyperparameters), cache)
    short_way = _logits(_task(cache, ALL, **hyperparameters), cache)
    assert long_way.dtype == torch.float64
    torch.testing.assert_close(short_way, long_way, rtol=0, atol=1e-9)


def test_initial_weights_are_the_full_networks(cache: ClipCache) -> None:
    device = TrainingDevice(CPU)
    short, full = (_network(device, _task(cache, economies), cache) for economies in (ALL, NONE))
    for ours, theirs in zip(short.model.state_dict().values(), full.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_dead_taps_are_not_computed_but_kept(cache: ClipCache) -> None:
    network = _network(TrainingDevice(CPU), _task(cache, ALL, temporal_size=9), cache)
    before = {name: p.detach().clone() for name, p in network.model.named_parameters()}
    _train(network, _task(cache, ALL, temporal_size=9), cache, steps=3)
    # The last group sees one frame: of nine taps only the middle one meets it.
    last = [name for name, p in network.model.named_parameters() if p.dim() == 5][-1]
    moved = (dict(network.model.named_parameters())[last] != before[last]).flatten(3).any(3).any(0).any(0)
    assert moved.tolist() == [tap == 4 for tap in range(9)]


@pytest.mark.parametrize("fold", range(3))
def test_stopping_at_the_first_perfect_epoch_keeps_best_epoch_and_labels(cache: ClipCache, fold: int) -> None:
    all_epochs = run(_task(cache, NONE, fold=fold), cache)
    stopped = run(_task(cache, NONE.model_copy(update={"stop_when_perfect": True}), fold=fold), cache)
    _assert_equal(stopped, all_epochs.model_copy(update={"epochs": all_epochs.epochs[: len(stopped.epochs)]}))
    label = {clip.clip_id: clip.label for clip in cache.clips()}
    truth = tuple(label[clip_id] for clip_id in _task(cache, NONE, fold=fold).test_clips)
    perfect = [number for number, epoch in enumerate(all_epochs.epochs) if epoch.predicted == truth]
    assert len(stopped.epochs) == (perfect[0] + 1 if perfect else EPOCHS)


def _task(cache: ClipCache, economies: Economies, *, fold: int = 0, **hyperparameters: Any) -> FoldTask:
    short: TrainingSettings = TINY.model_copy(update={"width": 2, "epochs": EPOCHS, "learning_rate": 0.01})
    return assign(cache, short, fold=fold, **hyperparameters).model_copy(update={"economies": economies})


def _assert_equal(ours: FoldResult, theirs: FoldResult) -> None:
    assert [epoch.predicted for epoch in ours.epochs] == [epoch.predicted for epoch in theirs.epochs]
    for a, b in zip(ours.epochs, theirs.epochs, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-6)
        # Kept to six decimals: the same number may round up here and down there.
        np.testing.assert_allclose(a.probabilities, b.probabilities, rtol=0, atol=1.1e-6)


def _network(device: TrainingDevice, task: FoldTask, cache: ClipCache) -> Network:
    batches = Batches.of(task, device.clip_set(task, cache))
    settings = NetworkSettings.of(task, channels=batches.channels, device=CPU)
    return device.network(settings, batches, seed=task.seed)


def _logits(task: FoldTask, cache: ClipCache) -> torch.Tensor:
    network = _network(TrainingDevice(CPU), task, cache)
    return _train(network, task, cache, steps=20)


def _train(network: Network, task: FoldTask, cache: ClipCache, *, steps: int) -> torch.Tensor:
    clip_set = TrainingDevice(CPU).clip_set(task, cache)
    optimizer = build_optimizer(task.hyperparameters, network.model.parameters(), learning_rate=1e-3)
    torch.manual_seed(0)
    network.model.train()
    for step in range(steps):
        rows = torch.arange(step % 4, len(clip_set.labels), 4)
        clips = clip_set.batch(
            rows,
            normalization=task.hyperparameters.normalization,
            gray_as_one_channel=task.economies.gray_as_one_channel,
        )
        optimizer.zero_grad()
        F.cross_entropy(network(clips), clip_set.labels[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network.model.eval()
    with torch.no_grad():
        return network(clips)
