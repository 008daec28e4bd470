"""Operations per clip against the arithmetic of the architecture, and the memory of a batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from services.search_space import Hyperparameters
from tests.harness.networks import build_network
from worker.training.costs import peak_bytes, training_bytes, training_flops
from worker.training.model import EmotionNet


def _papers(**hyperparameters: object) -> EmotionNet:
    with torch.device("meta"):
        return build_network(
            Hyperparameters.model_validate(hyperparameters),
            width=64,
            classes=7,
            frames=10,
            frame_size=112,
            bn_momentum=0.1,
        )


@pytest.mark.parametrize(
    ("temporal_size", "second", "gigaflops", "without_padding"),
    [
        (1, False, 45.6, 45.6),
        (3, False, 136, 114),
        (5, False, 227, 162),
        (7, False, 317, 200),
        (9, False, 408, 226),
        (3, True, 303, None),
        (9, True, 907, None),
    ],
)
def test_a_clip_at_full_size(
    temporal_size: int, second: bool, gigaflops: float, without_padding: float | None
) -> None:
    model = _papers(temporal_size=temporal_size, second_conv_layer=second)
    assert training_flops(model) / 1e9 == pytest.approx(gigaflops, rel=0.01)
    if without_padding is not None:
        assert training_flops(model, count_padding=False) / 1e9 == pytest.approx(without_padding, rel=0.01)


def test_one_channel_saves_two_thirds_of_the_first_convolution() -> None:
    model = _papers(temporal_size=1)
    first = 2 * 2 * 3 * 64 * 10 * 112 * 112 * 9
    assert training_flops(model) - training_flops(model, channels=1) == first * 2 // 3


def test_costs_are_the_same_however_the_modules_are_nested() -> None:
    flat, nested = _papers(), _papers()
    first, *others = nested.features
    nested.features = nn.Sequential(nn.Sequential(first), nn.Sequential(*others))
    assert training_flops(nested) == training_flops(flat)
    assert peak_bytes(nested, batch_size=2) == peak_bytes(flat, batch_size=2)


GIB = 2**30
T4, V100 = 14.56, 15.77
"""GiB that torch sees of two GPUs of 16 GB."""


@pytest.mark.parametrize(
    ("hyperparameters", "held", "peak"),
    [
        ({}, 4.8, 6.6),
        ({"second_conv_layer": True}, 7.5, 9.3),
        ({"second_conv_layer": True, "temporal_size": 9, "activation": "Mish"}, 11.4, 13.2),
        (
            {
                "second_conv_layer": True,
                "temporal_size": 9,
                "activation": "Mish",
                "pooling_layer": "MaxPooling",
            },
            12.0,
            13.8,
        ),
    ],
)
def test_memory_as_the_documentation_says(hyperparameters: dict[str, object], held: float, peak: float) -> None:
    model = _papers(**hyperparameters)
    assert training_bytes(model, batch_size=30, channels=1) / GIB == pytest.approx(held, abs=0.05)
    assert peak_bytes(model, batch_size=30, channels=1) / GIB == pytest.approx(peak, abs=0.05)


@pytest.mark.parametrize("activation", ["ReLU", "ELU", "pReLU", "leaky ReLU", "Mish"])
@pytest.mark.parametrize("pooling_layer", ["AvgPooling", "MaxPooling"])
@pytest.mark.parametrize("temporal_size", [1, 7, 9])
def test_every_corner_of_table_1_fits_a_v100_but_not_a_t4(
    activation: str, pooling_layer: str, temporal_size: int
) -> None:
    model = _papers(
        activation=activation,
        pooling_layer=pooling_layer,
        temporal_size=temporal_size,
        second_conv_layer=True,
    )
    # CK+ with and without CLAHE, and the CUDA context.
    clips, context = 2 * 216e6, 0.6e9
    needed = (peak_bytes(model, batch_size=30, channels=1) + clips + context) / GIB
    assert needed < V100
    largest = (pooling_layer, temporal_size) == ("MaxPooling", 9) and activation != "ReLU"
    assert (needed > T4) == largest


def test_memory_is_weights_and_what_backward_needs() -> None:
    model = _papers()
    weights = 16 * sum(parameter.numel() for parameter in model.parameters())
    one, two, three = (training_bytes(model, batch_size=size) for size in (1, 2, 3))
    assert one > weights
    assert three - two == two - one
    # Convolutions, batch norms and pools keep their inputs, ReLU its output: twice the outputs of convolutions.
    outputs = 64 * 10 * 112**2 + 128 * 10 * 56**2 + 2 * 256 * 5 * 28**2 + 2 * 512 * 2 * 14**2 + 2 * 512 * 7**2
    assert two - one == pytest.approx(2 * outputs * 4, rel=0.15)
