"""Every option of Table 1 gives a network that works; that it is the paper's is in test_exactness.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from services.errors import InvalidInput
from services.search_space import Hyperparameters, paper_space
from tests.harness.networks import build_network
from worker.training.model import MaxPool, TemporalConv

PAPER: dict[str, Any] = {"width": 64, "classes": 7, "frames": 10, "frame_size": 112, "bn_momentum": 0.1}
TINY: dict[str, Any] = {**PAPER, "width": 2, "frame_size": 32}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_layers_of_a_group_stand_in_order() -> None:
    hp = Hyperparameters(second_conv_layer=True, activation="Mish", pooling_layer="MaxPooling")
    block = [TemporalConv, nn.BatchNorm3d, nn.Mish]
    expected = [*(2 * block), MaxPool] * 5
    assert [type(layer) for layer in build_network(hp, **TINY).features] == expected


@pytest.mark.parametrize("pooling_layer", ["AvgPooling", "MaxPooling"])
@pytest.mark.parametrize("temporal_size", [1, 3, 5, 9])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("channels", "filled"), [(1, 1), (1, 8), (3, 1), (3, 8)])
def test_every_layer_keeps_the_memory_format(
    pooling_layer: str, temporal_size: int, memory_format: torch.memory_format, channels: int, filled: int
) -> None:
    hp = Hyperparameters.model_validate({"pooling_layer": pooling_layer, "temporal_size": temporal_size})
    model = build_network(hp, **TINY).to(memory_format=memory_format)
    model.fill_channels(filled)
    changed = []

    def look(name: str, output: Tensor) -> None:
        if not output.is_contiguous(memory_format=memory_format):
            changed.append(name)

    for name, layer in model.features.named_children():
        layer.register_forward_hook(lambda _layer, _inputs, output, name=name: look(name, output))
    model(torch.rand(2, channels, 10, 32, 32).contiguous(memory_format=memory_format))
    assert changed == []


OPTIONS = [
    (name, option) for name, domain in paper_space().items() if isinstance(domain, tuple) for option in domain
] + [("dropout", 0.0), ("dropout", 1.0)]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_trains(name: str, option: Any) -> None:
    model = build_network(Hyperparameters.model_validate({name: option}), **TINY)
    logits = model(torch.rand(2, 3, 10, 32, 32))
    assert logits.shape == (2, 7)
    nn.functional.cross_entropy(logits, torch.tensor([0, 6])).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("pooling_layer", ["AvgPooling", "MaxPooling"])
@pytest.mark.parametrize("frames", [1, 2, 3, 10, 16])
@pytest.mark.parametrize("frame_size", [16, 17, 31, 48])
def test_other_clip_sizes(pooling_layer: str, frames: int, frame_size: int) -> None:
    hp = Hyperparameters.model_validate({"pooling_layer": pooling_layer})
    model = build_network(hp, **{**TINY, "frames": frames, "frame_size": frame_size}).eval()
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


def test_equal_seeds_give_equal_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build_network(Hyperparameters(), **TINY).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(("field", "value"), [("frames", 0), ("frame_size", 15), ("width", 0), ("classes", 1)])
def test_impossible_sizes_are_named(field: str, value: int) -> None:
    with pytest.raises(InvalidInput, match=f"{field} is {value}") as caught:
        build_network(Hyperparameters(), **{**TINY, field: value})
    assert caught.value.field == field


def test_clips_of_another_shape_are_refused() -> None:
    model = build_network(Hyperparameters(), **TINY)
    with pytest.raises(InvalidInput, match="3 x 10 x 32 x 32"):
        model(torch.rand(2, 3, 9, 32, 32))
