"""Network, optimiser, loss and augmentation are the paper's: held against the formulas in `tests/reference`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from services.clip_cache import CacheRecord, ClipCache, cache_folder, open_cache
from services.clip_cache_writer import CacheWriter
from services.contracts import (
    ANY_CLASS,
    Augmentation,
    AugmentationCounts,
    FoldTask,
    TrainingSettings,
)
from services.presets import CKPLUS_AUGMENTATION, OULU_AUGMENTATION
from services.search_space import Hyperparameters
from services.seeds import derive_seed
from tests.harness.fold_tasks import CLASSES, CPU, FINGERPRINT, assign
from tests.harness.networks import build_network
from tests.reference import augmentation as plain_augmentation
from tests.reference import network as plain
from worker.training.augmentation import augment, change_contrast, flip, rotate
from worker.training.clips import ClipSet, ClipStore
from worker.training.dropout import Dropout
from worker.training.fit import run_fold, shuffled_batches
from worker.training.model import ACTIVATIONS, EmotionNet
from worker.training.optim import build_optimizer, class_weights
from worker.training.training_device import TrainingDevice

PAPER: dict[str, Any] = {"width": 64, "classes": 7, "frames": 10, "frame_size": 112, "bn_momentum": 0.1}
TINY: dict[str, Any] = {**PAPER, "width": 2, "frame_size": 32}

TEMPORAL_SIZES = (1, 3, 5, 7, 9)
POOLS = ("AvgPooling", "MaxPooling")
ACTIVATION_NAMES = ("ReLU", "ELU", "pReLU", "leaky ReLU", "Mish")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- The network at its full size -------------------------------------------------------------------------


@pytest.mark.parametrize("second_conv", [False, True])
@pytest.mark.parametrize("pooling", POOLS)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_layer_by_layer(pooling: str, second_conv: bool, channels: int) -> None:
    with torch.device("meta"):
        model = build_network(_hp(pooling_layer=pooling, second_conv_layer=second_conv), **PAPER)
        x = torch.empty(2, channels, 10, 112, 112)
    shapes = []
    for layer in [*model.features, *model.classifier]:
        x = layer(x)
        if isinstance(layer, nn.Conv3d | nn.AvgPool3d | nn.MaxPool3d | nn.Flatten | nn.Linear):
            shapes.append(tuple(x.shape[1:]))
    twice = ("conv1", "conv2") if second_conv else ()
    assert shapes == [shape for name, shape in plain.PAPERS_SHAPES.items() for _ in range(1 + (name in twice))]


@pytest.mark.parametrize(
    ("temporal_size", "one_conv", "two_convs"),
    [(1, 59.6, 59.8), (3, 78.0, 78.6), (5, 96.5, 97.4), (7, 114.9, 116.2), (9, 133.3, 135.0)],
)
def test_parameter_counts_of_the_papers_network(temporal_size: int, one_conv: float, two_convs: float) -> None:
    """The millions are the ones that docs/reproduce.md prints."""
    for second, millions in ((False, one_conv), (True, two_convs)):
        for activation in ("ReLU", "pReLU"):
            hp = _hp(temporal_size=temporal_size, second_conv_layer=second, activation=activation)
            with torch.device("meta"):
                found = sum(p.numel() for p in build_network(hp, **PAPER).parameters())
            assert found == plain.parameter_count(
                temporal_size=temporal_size, second_conv=second, prelu=activation == "pReLU"
            )
            assert round(found / 1e6, 1) == millions


# --- Values and gradients ---------------------------------------------------------------------------------


def _networks() -> Iterator[Any]:
    """All 100 networks. A quarter of them has every pair of two options; the others are `long`."""
    for t, a, pooling, second in itertools.product(range(5), range(5), range(2), range(2)):
        covers = (pooling, second) == ((t + a) % 2, (t + a) // 2 % 2)
        options = TEMPORAL_SIZES[t], POOLS[pooling], bool(second), ACTIVATION_NAMES[a]
        yield pytest.param(*options, marks=() if covers else pytest.mark.long)


def test_the_networks_of_a_short_run_have_every_pair_of_options() -> None:
    def pairs(networks: Iterator[Any]) -> set[Any]:
        return {(i, j, n.values[i], n.values[j]) for n in networks for i in range(4) for j in range(i)}

    short = [network for network in _networks() if not network.marks]
    assert len(short) == 25
    assert pairs(iter(short)) == pairs(_networks())


@pytest.mark.parametrize(("temporal_size", "pooling", "second_conv", "activation"), list(_networks()))
def test_values_and_gradients_are_the_references(
    temporal_size: int, pooling: str, second_conv: bool, activation: str
) -> None:
    hp = _hp(
        temporal_size=temporal_size, pooling_layer=pooling, second_conv_layer=second_conv, activation=activation
    )
    _assert_same_network(hp, channels=1)


def _gray_and_colour() -> Iterator[Any]:
    """Each temporal size with 1 and 3 channels; every second pair is `long`."""
    for t, channels in itertools.product(range(5), (1, 3)):
        marks = () if channels == (1, 3)[t % 2] else pytest.mark.long
        yield pytest.param(TEMPORAL_SIZES[t], channels, marks=marks)


@pytest.mark.parametrize(("temporal_size", "channels"), list(_gray_and_colour()))
@pytest.mark.parametrize(
    "options",
    [
        {"batch_norm": "after activation"},
        {"pool_counts_padding": False},
        {"skip_dead_taps": False},
        {"width": 4, "frame_size": 48, "bn_momentum": 0.03},
    ],
)
def test_other_settings_too(temporal_size: int, channels: int, options: dict[str, Any]) -> None:
    _assert_same_network(_hp(temporal_size=temporal_size), channels=channels, **options)


@pytest.mark.parametrize(("temporal_size", "channels"), list(_gray_and_colour()))
@pytest.mark.parametrize("pooling", POOLS)
def test_with_channels_last_in_memory_too(temporal_size: int, channels: int, pooling: str) -> None:
    hp = _hp(temporal_size=temporal_size, pooling_layer=pooling)
    _assert_same_network(hp, channels=channels, memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("min_channels", [4, 8])
def test_channels_of_zeros_change_nothing(channels: int, min_channels: int) -> None:
    _assert_same_network(_hp(), channels=channels, min_channels=min_channels)


def _assert_same_network(
    hp: Hyperparameters,
    *,
    channels: int,
    min_channels: int = 1,
    memory_format: torch.memory_format = torch.contiguous_format,
    **options: Any,
) -> None:
    """Two training steps and a test, both networks with the same weights, clips and dropout, in float64."""
    arguments = {**TINY, **options}
    ours = build_network(hp, **arguments).double().to(memory_format=memory_format)
    ours.fill_channels(min_channels)
    _shake(ours)
    reference = _reference_of(ours, hp, **options)
    size = arguments["frame_size"]
    for seed in (1, 2):
        clips = torch.rand(2, channels, 10, size, size, dtype=torch.float64)
        clips = clips.contiguous(memory_format=memory_format)
        labels = torch.tensor([0, 6])
        got = _forward_and_backward(ours, clips, labels, seed)
        wanted = _forward_and_backward(reference, clips.expand(-1, 3, -1, -1, -1), labels, seed)
        _assert_close(got, wanted)
        for parameter, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
            assert parameter.grad is not None
            assert theirs.grad is not None
            _assert_close(parameter.grad, theirs.grad)
    for got, wanted in zip(ours.buffers(), reference.buffers(), strict=True):
        _assert_close(got, wanted)
    with torch.no_grad():
        _assert_close(ours.eval()(clips), reference.eval()(clips.expand(-1, 3, -1, -1, -1)))


def _forward_and_backward(model: nn.Module, clips: Tensor, labels: Tensor, seed: int) -> Tensor:
    model.zero_grad()
    torch.manual_seed(seed)
    logits: Tensor = model.train()(clips)
    plain.cross_entropy(logits, labels, None).backward()  # type: ignore[no-untyped-call]
    return logits.detach()


def _assert_close(got: Tensor, wanted: Tensor) -> None:
    """Equal within 1e-9 of the largest value."""
    largest = wanted.abs().max().item()
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9 * largest)


def _shake(model: nn.Module) -> None:
    """Move what starts at 0, 1 or 0.25, so that a mix-up shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)


def _reference_of(
    model: EmotionNet,
    hp: Hyperparameters,
    *,
    width: int = TINY["width"],
    frame_size: int = TINY["frame_size"],
    classes: int = TINY["classes"],
    bn_momentum: float = TINY["bn_momentum"],
    batch_norm: str = "before activation",
    pool_counts_padding: bool = True,
    skip_dead_taps: bool = True,
) -> plain.ReferenceNet:
    """The reference with the weights of `model`; it knows no taps to skip."""
    reference = plain.ReferenceNet(
        temporal_size=hp.temporal_size,
        second_conv=hp.second_conv_layer,
        pooling=hp.pooling_layer,
        activation=hp.activation,
        dropout=hp.dropout,
        classes=classes,
        width=width,
        frame_size=frame_size,
        bn_momentum=bn_momentum,
        batch_norm=batch_norm,
        pool_counts_padding=pool_counts_padding,
    ).double()
    weights = [value.clone() for value in model.state_dict().values()]
    reference.load_state_dict(dict(zip(reference.state_dict(), weights, strict=True)))
    return reference


# --- Layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_activations_are_their_formulas(name: str) -> None:
    ours, reference = ACTIVATIONS[name]().double(), plain.ACTIVATIONS[name]().double()
    # No 0: a kink has no gradient.
    x = torch.linspace(-30, 30, 1000, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-12, atol=1e-14)
    slopes = [torch.autograd.grad(module(x).sum(), x)[0] for module in (ours, reference)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-12, atol=1e-14)
    assert [p.tolist() for p in ours.parameters()] == ([[0.25]] if name == "pReLU" else [])


def test_activations_at_known_points() -> None:
    def at(name: str, x: float) -> float:
        value: float = ACTIVATIONS[name]().double()(torch.tensor([x], dtype=torch.float64)).item()
        return value

    assert (at("ReLU", -2), at("ReLU", 2)) == (0, 2)
    assert (at("leaky ReLU", -2), at("leaky ReLU", 2)) == (-0.02, 2)
    assert (at("pReLU", -2), at("pReLU", 2)) == (-0.5, 2)
    assert at("ELU", -2) == pytest.approx(math.exp(-2) - 1, rel=1e-12)
    assert at("Mish", -2) == pytest.approx(-2 * math.tanh(math.log(1 + math.exp(-2))), rel=1e-12)


def test_the_last_average_pool_damps_its_border() -> None:
    """By hand: its windows start in the padding, so the first row and column are halved; the last are not."""
    ones = torch.ones(1, 1, 1, 7, 7)
    damped = [[0.25, 0.5, 0.5, 0.5], [0.5, 1, 1, 1], [0.5, 1, 1, 1], [0.5, 1, 1, 1]]
    assert _last_pool(pooling_layer="AvgPooling")(ones)[0, 0, 0].tolist() == damped
    plain = _last_pool(pooling_layer="AvgPooling", pool_counts_padding=False)
    assert plain(ones)[0, 0, 0].tolist() == [[1.0] * 4] * 4


def test_the_last_pool_by_hand() -> None:
    numbers = -torch.arange(1.0, 50).reshape(1, 1, 1, 7, 7)
    first = numbers[0, 0, 0]
    average = _last_pool(pooling_layer="AvgPooling")(numbers)[0, 0, 0]
    assert average[0, 0] == first[0, 0] / 4
    assert average[0, 1] == (first[0, 1] + first[0, 2]) / 4
    assert average[3, 2] == first[5:7, 3:5].sum() / 4
    # Padding never wins, though it is above these numbers.
    largest = _last_pool(pooling_layer="MaxPooling")(numbers)[0, 0, 0]
    assert largest.tolist() == [
        [-1, -2, -4, -6],
        [-8, -9, -11, -13],
        [-22, -23, -25, -27],
        [-36, -37, -39, -41],
    ]


def _last_pool(*, pooling_layer: str, **options: Any) -> nn.Module:
    return build_network(_hp(pooling_layer=pooling_layer), **TINY, **options).features[-1]


@pytest.mark.parametrize("momentum", [0.1, 0.37])
def test_momentum_of_batch_normalisation(momentum: float) -> None:
    model = build_network(_hp(), **{**TINY, "bn_momentum": momentum}).double()
    seen = _inputs_and_outputs(model, nn.BatchNorm3d)
    model.train()(torch.rand(3, 3, 10, 32, 32, dtype=torch.float64))
    assert len(seen) == 8
    for norm, (x, y) in seen.items():
        assert isinstance(norm, nn.BatchNorm3d)
        values = x.transpose(0, 1).flatten(1)
        mean, count = values.mean(1), values.shape[1]
        squares = ((values - mean[:, None]) ** 2).sum(1)
        torch.testing.assert_close(norm.running_mean, momentum * mean)
        # What is kept is the unbiased variance; the batch itself is divided by the other one.
        torch.testing.assert_close(norm.running_var, (1 - momentum) + momentum * squares / (count - 1))
        scaled = (values - mean[:, None]) / (squares / count + 1e-5).sqrt()[:, None]
        torch.testing.assert_close(y.transpose(0, 1).flatten(1), scaled)


def test_dropout_stands_between_the_dense_layers() -> None:
    model = build_network(_hp(dropout=0.25), **{**TINY, "width": 16})
    block = [nn.Linear, nn.ReLU, Dropout]
    assert [type(layer) for layer in model.classifier] == [nn.Flatten, *block, *block, nn.Linear]
    assert not any(isinstance(layer, Dropout) for layer in model.features)
    seen = _inputs_and_outputs(model, Dropout)
    clips = torch.rand(8, 3, 10, 32, 32)
    model.train()(clips)
    assert len(seen) == 2
    for x, y in seen.values():
        alive = x > 0
        zeroed = (y[alive] == 0).double().mean().item()
        assert zeroed == pytest.approx(0.25, abs=0.03)
        kept = y != 0
        torch.testing.assert_close(y[kept], x[kept] / 0.75)
    model.eval()(clips)
    assert all(torch.equal(x, y) for x, y in seen.values())


def _inputs_and_outputs(model: nn.Module, kind: type[nn.Module]) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """What the model's layers of this kind last took and gave; filled by a forward pass."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[layer] = (inputs[0].detach(), output.detach())

    for layer in model.modules():
        if isinstance(layer, kind):
            layer.register_forward_hook(keep)
    return seen


# --- Initial weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temporal_size", TEMPORAL_SIZES)
def test_xavier_uniform_stays_in_its_bounds_and_fills_them(temporal_size: int) -> None:
    for weight, fan_in, fan_out in _weights("Xavier uniform", temporal_size):
        bound = math.sqrt(6 / (fan_in + fan_out))
        count = weight.numel()
        # As close to the bound as the largest of so many numbers is, and five deviations of a variance.
        assert (1 - 12 / count) * bound < weight.abs().max() <= bound
        variance = weight.square().mean().item()
        assert variance == pytest.approx(2 / (fan_in + fan_out), rel=5 * math.sqrt(0.8 / count))


@pytest.mark.parametrize("temporal_size", TEMPORAL_SIZES)
def test_xavier_normal_has_its_deviation_and_its_tails(temporal_size: int) -> None:
    for weight, fan_in, fan_out in _weights("Xavier normal", temporal_size):
        deviation = math.sqrt(2 / (fan_in + fan_out))
        count = weight.numel()
        found = weight.square().mean().sqrt().item()
        assert found == pytest.approx(deviation, rel=5 / math.sqrt(2 * count))
        # Uniform numbers of the same variance end at 1.73 deviations.
        assert weight.abs().max() > 1.9 * deviation


@pytest.mark.parametrize("initializer", ["Xavier uniform", "Xavier normal"])
def test_what_is_not_drawn(initializer: str) -> None:
    model = build_network(_hp(initializer=initializer, activation="pReLU"), **TINY)
    for layer in model.modules():
        if isinstance(layer, nn.Conv3d):
            assert layer.bias is None
        elif isinstance(layer, nn.Linear):
            assert (layer.bias == 0).all()
        elif isinstance(layer, nn.BatchNorm3d):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()
            assert layer.eps == 1e-5
        elif isinstance(layer, nn.PReLU):
            assert layer.weight.tolist() == [0.25]


def _weights(initializer: str, temporal_size: int) -> list[tuple[Tensor, int, int]]:
    """Every convolution's and dense layer's weights, with the fans of the full kernel."""
    hp = _hp(initializer=initializer, temporal_size=temporal_size, second_conv_layer=True)
    model = build_network(hp, **{**TINY, "width": 8, "frame_size": 16})
    found = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv3d):
            filters, inputs = layer.weight.shape[:2]
            taps = temporal_size * 3 * 3
            found.append((layer.weight.detach(), inputs * taps, filters * taps))
        elif isinstance(layer, nn.Linear):
            found.append((layer.weight.detach(), layer.weight.shape[1], layer.weight.shape[0]))
    assert len(found) == 10 + 3
    return found


# --- Optimiser and loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimization", ["Adam", "Lookahead+Adam"])
def test_the_optimiser_is_its_authors_formula(optimization: str) -> None:
    start = [torch.randn(3, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]
    ours = [nn.Parameter(w.clone()) for w in start]
    optimizer = build_optimizer(_hp(optimization=optimization), ours, learning_rate=0.01)
    lookahead = optimization == "Lookahead+Adam"
    reference = plain.ReferenceOptimizer(start, learning_rate=0.01, lookahead=lookahead)
    adam: Any = getattr(optimizer, "optimizer", optimizer)
    for step in range(1, 24):
        for parameter, gradient in zip(ours, _gradients(ours, step), strict=True):
            parameter.grad = gradient
        optimizer.step()
        reference.step(_gradients(reference.weights, step))
        for i, parameter in enumerate(ours):
            torch.testing.assert_close(parameter.detach(), reference.weights[i], rtol=1e-10, atol=1e-12)
            if lookahead and step % 5 == 0:
                torch.testing.assert_close(parameter.detach(), reference.slow[i], rtol=1e-10, atol=1e-12)
            # Lookahead leaves Adam's moments as they are.
            state = adam.state[parameter]
            torch.testing.assert_close(state["exp_avg"], reference.first[i], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(state["exp_avg_sq"], reference.second[i], rtol=1e-10, atol=1e-12)
            assert float(state["step"]) == step


def _gradients(weights: list[Any], step: int) -> list[Tensor]:
    """Of a loss that changes from step to step, as batches do."""
    return [3 * w.detach() + (-1) ** step * torch.arange(w.numel()).reshape(w.shape).double() for w in weights]


def test_slow_weights_start_as_the_initial_ones() -> None:
    """By hand: five steps of about the learning rate each, then half of the way back."""
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = build_optimizer(_hp(optimization="Lookahead+Adam"), [weight], learning_rate=0.1)
    seen = []
    for _ in range(6):
        weight.grad = torch.tensor([2.0], dtype=torch.float64)
        optimizer.step()
        seen.append(weight.item())
    assert seen == pytest.approx([0.9, 0.8, 0.7, 0.6, 1 + 0.5 * (0.5 - 1), 0.65], abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), min_size=2, max_size=10).filter(any))
def test_class_weights_are_the_formula(clips: list[int]) -> None:
    labels = torch.tensor([label for label, n in enumerate(clips) for _ in range(n)])
    ours = class_weights(labels, classes=len(clips))
    assert ours.tolist() == pytest.approx(plain.class_weights(clips), rel=1e-6)
    present = [w for w in ours.tolist() if w > 0]
    assert sum(present) / len(present) == pytest.approx(1, rel=1e-6)


CKPLUS = {"anger": 45, "contempt": 18, "disgust": 59, "fear": 25, "happy": 69, "sadness": 28, "surprise": 83}


def test_class_weights_of_ckplus() -> None:
    labels = torch.tensor([label for label, n in enumerate(CKPLUS.values()) for _ in range(n)])
    weights = class_weights(labels, classes=7)
    # A clip of contempt weighs as many times more as there are fewer of them.
    assert (weights[1] / weights[6]).item() == pytest.approx(83 / 18, rel=1e-6)
    assert weights.mean().item() == pytest.approx(1, rel=1e-6)


# --- A whole fold -----------------------------------------------------------------------------------------


@pytest.fixture
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    "hyperparameters",
    [
        {},
        {"optimization": "Lookahead+Adam", "loss_weights": True, "normalization": True, "clahe": True},
        {"pooling_layer": "MaxPooling", "activation": "Mish", "second_conv_layer": True, "temporal_size": 5},
    ],
)
def test_a_fold_is_the_plain_training_loop(tmp_path: Path, hyperparameters: dict[str, Any]) -> None:
    cache = _write_cache(tmp_path, dict(zip(CLASSES, (5, 3, 4), strict=True)), frames=10, size=32)
    # Uneven, so that weights by recorded clips are not weights by copies.
    all_kinds, more = AugmentationCounts(flip=1, rotation=1, contrast=1), AugmentationCounts(rotation=5)
    augmentation = Augmentation(counts={ANY_CLASS: all_kinds, CLASSES[1]: more})
    training = TrainingSettings(
        width=3, frame_size=32, batch_size=5, epochs=2, learning_rate=1e-3, augmentation=augmentation
    )
    task = assign(cache, training, fold=1, seed=5, **hyperparameters)
    device = TrainingDevice(CPU)
    result = run_fold(task, cache, device, revision=None, on_step=lambda progress: None)
    clip_set = device.clips.get(
        cache,
        clahe=task.hyperparameters.clahe,
        study_seed=task.study_seed,
        augmentation=augmentation,
        device=CPU,
    )
    assert (clip_set.take(torch.arange(12)).numpy() == cache.frames(clahe=task.hyperparameters.clahe)).all()
    wanted = _plain_training(task, clip_set)
    assert len(result.epochs) == len(wanted) == 2
    for epoch, (loss, probabilities) in zip(result.epochs, wanted, strict=True):
        assert epoch.loss == pytest.approx(loss, rel=1e-8)
        np.testing.assert_allclose(epoch.probabilities, probabilities, atol=5.1e-7)
        assert epoch.predicted == tuple(np.argmax(probabilities, axis=1))


def _plain_training(task: FoldTask, clip_set: ClipSet) -> list[tuple[float, NDArray[np.float64]]]:
    """Loss and test probabilities of every epoch, by the reference; batches and dropout as the worker draws."""
    hp, training = task.hyperparameters, task.training
    labels = clip_set.labels.tolist()
    by_id = {clip.clip_id: row for row, clip in enumerate(clip_set.clips)}
    test_rows = [by_id[clip_id] for clip_id in task.test_clips]
    clip_of_row = clip_set.clip_of_row.tolist()
    train_rows = torch.tensor([row for row, clip in enumerate(clip_of_row) if clip not in test_rows])
    recorded = [labels[row] for row in train_rows.tolist() if row < len(clip_set.clips)]
    counts = [recorded.count(label) for label in range(len(task.classes))]
    weights = plain.class_weights(counts) if hp.loss_weights else None

    torch.manual_seed(task.seed)
    sizes: dict[str, Any] = {"width": 3, "classes": 3, "frame_size": 32, "bn_momentum": 0.1}
    initial = build_network(hp, frames=10, **sizes)
    net = _reference_of(initial, hp, **sizes)
    optimizer = plain.ReferenceOptimizer(
        list(net.parameters()), learning_rate=training.learning_rate, lookahead="Lookahead" in hp.optimization
    )
    order = torch.Generator().manual_seed(task.seed)
    torch.manual_seed(derive_seed("training", task.seed))
    epochs = []
    for _ in range(training.epochs):
        net.train()
        total = 0.0
        for rows in shuffled_batches(train_rows, training.batch_size, order):
            net.zero_grad()
            clips = _plain_clips(clip_set, rows.tolist(), hp.normalization)
            loss = plain.cross_entropy(net(clips), torch.tensor([labels[row] for row in rows]), weights)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step([p.grad for p in net.parameters() if p.grad is not None])
            with torch.no_grad():
                for parameter, weight in zip(net.parameters(), optimizer.weights, strict=True):
                    parameter.copy_(weight)
            total += loss.item() * len(rows)
        with torch.no_grad():
            logits = net.eval()(_plain_clips(clip_set, test_rows, hp.normalization))
            probabilities = torch.softmax(logits, dim=1)
        epochs.append((total / len(train_rows), probabilities.numpy()))
    return epochs


def _plain_clips(clip_set: ClipSet, rows: list[int], normalization: bool) -> Tensor:
    """Gray clips as three channels in [0, 1] or [-1, 1]."""
    values = clip_set.take(torch.tensor(rows)).double()
    values = values / 127.5 - 1 if normalization else values / 255
    return torch.stack([values, values, values], dim=1)


# --- Augmentation -----------------------------------------------------------------------------------------

ALL_VALUES = np.arange(256, dtype=np.uint8)


@settings(deadline=None)
@given(st.one_of(st.floats(0.22, 2.2), st.floats(0, 50)))
def test_contrast_is_the_papers_formula_for_every_value(multiplier: float) -> None:
    exact = plain_augmentation.contrast(ALL_VALUES, multiplier)
    changed = change_contrast(ALL_VALUES, multiplier)
    assert changed.dtype == np.uint8
    assert (changed == np.rint(exact)).all()
    assert (np.diff(changed.astype(int)) >= 0).all()


def test_flip_is_the_references() -> None:
    clip = _noise(4, 15)
    assert (flip(clip) == [plain_augmentation.flip(frame) for frame in clip]).all()


@given(degrees=st.floats(-30, 30), size=st.sampled_from([16, 17, 24]))
@settings(max_examples=25, deadline=None)
def test_rotation_is_the_bilinear_formula(degrees: float, size: int) -> None:
    clip = _noise(2, size)
    exact = np.stack([plain_augmentation.rotate(frame, degrees) for frame in clip])
    # Half a grey level is rounding; the rest is the worker's 32-bit place of a sample.
    assert np.abs(rotate(clip, degrees, border="black") - exact).max() <= 0.5 + 0.02


@pytest.mark.parametrize("degrees", [-30.0, -12.5, 3.3, 30.0])
def test_rotation_is_opencvs(degrees: float) -> None:
    # Smooth, because OpenCV places a sample to 1/32 of a pixel.
    frame = cv2.GaussianBlur(_noise(1, 112)[0], (0, 0), 3).astype(np.uint8)
    theirs = plain_augmentation.rotate_by_opencv(frame, degrees).astype(int)
    ours = rotate(frame[None], degrees, border="black")[0].astype(int)
    y, x = np.mgrid[:112, :112] - 55.5
    inside = np.hypot(x, y) < 54
    assert np.abs(ours - theirs)[inside].max() <= 1


def test_a_clip_turns_by_one_angle_and_each_copy_by_its_own() -> None:
    still = np.repeat(_noise(1, 32), 4, axis=0)
    copies = augment(still, AugmentationCounts(rotation=5), Augmentation(), 5)
    assert all((copy == copy[0]).all() for copy in copies)
    assert all((one != other).any() for one, other in itertools.combinations(copies, 2))


def test_frames_of_a_moving_clip_turn_by_the_same_angle() -> None:
    clip = _noise(3, 32)
    for copy in augment(clip, AugmentationCounts(rotation=3), Augmentation(), 7):
        angles = np.arange(-30, 30, 0.5)
        errors = [[_error(frame, turned, a) for a in angles] for frame, turned in zip(clip, copy, strict=True)]
        best = angles[np.argmin(errors, axis=1)]
        assert len(set(best)) == 1


def _error(frame: NDArray[np.uint8], turned: NDArray[np.uint8], degrees: float) -> float:
    theirs = plain_augmentation.rotate_by_opencv(frame, degrees).astype(float)
    return float(np.abs(theirs - turned).mean())


def test_angles_are_uniform_in_their_range() -> None:
    spot = np.zeros((1, 101, 101), np.uint8)
    spot[0, 48:53, 88:93] = 255  # 40 pixels right of the centre
    angles = []
    for seed in range(6):
        for copy in augment(spot, AugmentationCounts(rotation=100), Augmentation(), seed):
            rows, columns = np.nonzero(copy[0] > 60)
            angles.append(np.degrees(np.arctan2(50 - rows.mean(), columns.mean() - 50)))
    assert -30.5 < min(angles) < -29
    assert 29 < max(angles) < 30.5
    _assert_uniform(np.array(angles), -30, 30)


def test_multipliers_are_uniform_in_their_range() -> None:
    clip = np.full((2, 4, 4), 177, np.uint8)  # 50 above the middle: no multiplier clips it
    multipliers: list[float] = []
    for seed in range(6):
        copies = augment(clip, AugmentationCounts(contrast=100), Augmentation(), seed)
        assert all(len(np.unique(copy)) == 1 for copy in copies)
        multipliers += ((copies[:, 0, 0, 0].astype(float) - 127) / 50).tolist()
    assert 0.21 <= min(multipliers) < 0.25
    assert 2.17 < max(multipliers) <= 2.21
    _assert_uniform(np.array(multipliers), 0.22, 2.2)


def _assert_uniform(values: NDArray[np.float64], low: float, high: float) -> None:
    """Kolmogorov and Smirnov: uniform numbers are this far off once in some ten thousand times."""
    ordered = np.sort((values - low) / (high - low))
    places = (np.arange(len(ordered)) + 0.5) / len(ordered)
    assert np.abs(ordered - places).max() < 2.2 / math.sqrt(len(ordered))


def _noise(frames: int, size: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (frames, size, size), dtype=np.uint8)


# --- Training sets ----------------------------------------------------------------------------------------

OULU = dict.fromkeys(("anger", "disgust", "fear", "happy", "sadness", "surprise"), 80)


@pytest.mark.parametrize(
    ("clips", "augmentation", "total"), [(CKPLUS, CKPLUS_AUGMENTATION, 1722), (OULU, OULU_AUGMENTATION, 4320)]
)
def test_the_papers_training_sets(
    tmp_path: Path, clips: dict[str, int], augmentation: Augmentation, total: int
) -> None:
    cache = _write_cache(tmp_path, clips)
    clip_set = _clip_set(cache, augmentation)
    assert clip_set.frames.shape[0] == len(clip_set.labels) == len(clip_set.clip_of_row) == total
    rows = torch.bincount(clip_set.labels).tolist()
    copies = {name: augmentation.counts_for(name) for name in clips}
    assert rows == [n * (1 + sum(copies[name].model_dump().values())) for name, n in clips.items()]


@pytest.mark.parametrize(("normalization", "low", "middle"), [(False, 0.0, 127 / 255), (True, -1.0, -1 / 255)])
def test_pixels_as_the_network_takes_them(
    tmp_path: Path, normalization: bool, low: float, middle: float
) -> None:
    clip_set = _clip_set(_write_cache(tmp_path, {"anger": 1}), Augmentation())
    values = clip_set.batch(torch.tensor([0]), normalization=normalization).flatten()
    assert values.dtype == torch.float32
    assert len(values) == 256
    assert (values[0].item(), values[255].item()) == (low, 1.0)
    assert values[127].item() == pytest.approx(middle, abs=1e-7)
    assert (values.diff() > 0).all()
    torch.testing.assert_close(values, torch.linspace(low, 1, 256), rtol=0, atol=2e-7)


def _clip_set(cache: ClipCache, augmentation: Augmentation) -> ClipSet:
    return ClipStore().get(cache, clahe=False, study_seed=0, augmentation=augmentation, device=CPU)


def _write_cache(root: Path, clips: Mapping[str, int], *, frames: int = 1, size: int = 16) -> ClipCache:
    """A cache of so many clips of each class; the first frame of the first one starts with every value once."""
    writer = CacheWriter(root, "blobs", FINGERPRINT)
    random = np.random.default_rng(0)
    clip_ids = []
    for label, count in clips.items():
        for number in range(count):
            clip_ids.append(f"S{number}/{label}")
            pixels = random.integers(0, 256, (frames, size, size), dtype=np.uint8)
            if len(clip_ids) == 1:
                pixels[0].flat[:256] = ALL_VALUES
            writer.add(_record(clip_ids[-1], label, frames), pixels, 255 - pixels)
    writer.finish(clip_ids=clip_ids, classes=tuple(clips), settings={}, tools={}, skipped={}, warnings=())
    return open_cache(cache_folder(root, "blobs", FINGERPRINT))


def _record(clip_id: str, label: str, frames: int) -> CacheRecord:
    return CacheRecord(
        clip_id=clip_id,
        subject=clip_id.partition("/")[0],
        label=label,
        source=clip_id,
        frames=tuple(f"{number}.png" for number in range(frames)),
        detector="none",
        boxes=(None,) * frames,
        confidences=(None,) * frames,
        repeated=0,
        flags=(),
    )


def _hp(**chosen: Any) -> Hyperparameters:
    return Hyperparameters.model_validate(chosen)
