"""The network is the paper's, and every option of Table 1 gives a network that works."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from services.errors import InvalidInput
from services.search_space import Hyperparameters, paper_space
from worker.training.model import EmotionNet, TemporalConv, build_model

PAPER: dict[str, Any] = {"width": 64, "classes": 7, "frames": 10, "frame_size": 112, "bn_momentum": 0.1}
TINY: dict[str, Any] = {**PAPER, "width": 2, "frame_size": 32}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("temporal_size", "one_conv", "second_conv"),
    [(1, 59.6, 59.8), (3, 78.0, 78.6), (5, 96.5, 97.4), (7, 114.9, 116.2), (9, 133.3, 135.0)],
)
def test_parameter_counts_of_the_papers_network(
    temporal_size: int, one_conv: float, second_conv: float
) -> None:
    for second, millions in ((False, one_conv), (True, second_conv)):
        hp = Hyperparameters.model_validate({"temporal_size": temporal_size, "second_conv_layer": second})
        with torch.device("meta"):
            model = build_model(hp, **PAPER)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def test_shapes_layer_by_layer() -> None:
    with torch.device("meta"):
        model = build_model(Hyperparameters(), **PAPER)
        x = torch.empty(2, 3, 10, 112, 112)
    shapes = []
    for layer in [*model.features, *model.classifier]:
        x = layer(x)
        if isinstance(layer, nn.Conv3d | nn.AvgPool3d | nn.Flatten | nn.Linear):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [
        (64, 10, 112, 112),
        (64, 10, 56, 56),
        (128, 10, 56, 56),
        (128, 5, 28, 28),
        (256, 5, 28, 28),
        (256, 5, 28, 28),
        (256, 2, 14, 14),
        (512, 2, 14, 14),
        (512, 2, 14, 14),
        (512, 1, 7, 7),
        (512, 1, 7, 7),
        (512, 1, 7, 7),
        (512, 1, 4, 4),
        (8192,),
        (4096,),
        (4096,),
        (7,),
    ]


def test_layers_of_a_group_stand_in_order() -> None:
    hp = Hyperparameters(second_conv_layer=True, activation="Mish", pooling_layer="MaxPooling")
    block = [TemporalConv, nn.BatchNorm3d, nn.Mish]
    expected = [*(2 * block), nn.MaxPool3d] * 5
    assert [type(layer) for layer in build_model(hp, **TINY).features] == expected


OPTIONS = [
    (name, option) for name, domain in paper_space().items() if isinstance(domain, tuple) for option in domain
] + [("dropout", 0.0), ("dropout", 1.0)]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_trains(name: str, option: Any) -> None:
    model = build_model(Hyperparameters.model_validate({name: option}), **TINY)
    logits = model(torch.rand(2, 3, 10, 32, 32))
    assert logits.shape == (2, 7)
    nn.functional.cross_entropy(logits, torch.tensor([0, 6])).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("pooling_layer", ["AvgPooling", "MaxPooling"])
@pytest.mark.parametrize("frames", [1, 2, 3, 10, 16])
@pytest.mark.parametrize("frame_size", [16, 17, 31, 48])
def test_other_clip_sizes(pooling_layer: str, frames: int, frame_size: int) -> None:
    hp = Hyperparameters.model_validate({"pooling_layer": pooling_layer})
    model = build_model(hp, **{**TINY, "frames": frames, "frame_size": frame_size}).eval()
    assert model(torch.rand(1, 3, frames, frame_size, frame_size)).isfinite().all()


@pytest.mark.parametrize("temporal_size", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("frames", [1, 2, 5, 10])
def test_convolutions_are_plain_ones_and_keep_the_length(temporal_size: int, frames: int) -> None:
    conv = TemporalConv(2, 3, temporal_size).double()
    clips = torch.randn(2, 2, frames, 6, 6, dtype=torch.float64, requires_grad=True)
    ours = conv(clips)
    assert ours.shape == (2, 3, frames, 6, 6)
    plain = nn.functional.conv3d(clips, conv.weight, padding=(temporal_size // 2, 1, 1))
    torch.testing.assert_close(ours, plain)
    direction = torch.randn_like(ours)
    for got, wanted in zip(
        torch.autograd.grad(ours, (clips, conv.weight), direction),
        torch.autograd.grad(plain, (clips, conv.weight), direction),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


def test_xavier_uniform_stays_in_its_bounds_and_fills_them() -> None:
    for weight, fan_in, fan_out in _weights(Hyperparameters(initializer="Xavier uniform")):
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < weight.abs().max() <= bound
        assert weight.var().item() == pytest.approx(2 / (fan_in + fan_out), rel=0.2)


def test_xavier_normal_has_its_variance_and_its_tails() -> None:
    for weight, fan_in, fan_out in _weights(Hyperparameters(initializer="Xavier normal")):
        deviation = (2 / (fan_in + fan_out)) ** 0.5
        assert weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert weight.abs().max() > 2.2 * deviation


def test_biases_start_at_zero() -> None:
    model = build_model(Hyperparameters(), **TINY)
    dense = [layer for layer in model.classifier if isinstance(layer, nn.Linear)]
    assert all((layer.bias == 0).all() for layer in dense)


def test_dropout_stands_between_the_dense_layers() -> None:
    model = build_model(Hyperparameters(dropout=0.25), **TINY)
    kinds = [type(layer) for layer in model.classifier]
    block = [nn.Linear, nn.ReLU, nn.Dropout]
    assert kinds == [nn.Flatten, *block, *block, nn.Linear]
    dropouts = [layer for layer in model.modules() if isinstance(layer, nn.Dropout)]
    assert [layer.p for layer in dropouts] == [0.25, 0.25]


def test_momentum_of_batch_normalisation() -> None:
    model = build_model(Hyperparameters(), **{**TINY, "bn_momentum": 0.37})
    momenta = {layer.momentum for layer in model.modules() if isinstance(layer, nn.BatchNorm3d)}
    assert momenta == {0.37}


def test_equal_seeds_give_equal_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build_model(Hyperparameters(), **TINY).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(("field", "value"), [("frames", 0), ("frame_size", 15), ("width", 0), ("classes", 1)])
def test_impossible_sizes_are_named(field: str, value: int) -> None:
    with pytest.raises(InvalidInput, match=f"{field} is {value}") as caught:
        build_model(Hyperparameters(), **{**TINY, field: value})
    assert caught.value.field == field


def test_clips_of_another_shape_are_refused() -> None:
    model = build_model(Hyperparameters(), **TINY)
    with pytest.raises(InvalidInput, match="3 x 10 x 32 x 32"):
        model(torch.rand(2, 3, 9, 32, 32))


def _weights(hp: Hyperparameters) -> list[tuple[torch.Tensor, int, int]]:
    """Weights large enough for statistics, with fan-in and fan-out."""
    model: EmotionNet = build_model(hp, **{**TINY, "width": 4})
    layers = [m for m in model.modules() if isinstance(m, nn.Conv3d | nn.Linear)]
    found = []
    for layer in layers:
        weight = layer.weight.detach()
        taps = weight[0, 0].numel()
        if weight.numel() > 1000:
            found.append((weight, weight.shape[1] * taps, weight.shape[0] * taps))
    assert len(found) >= 8
    return found
