"""The layers that a configuration gives by arithmetic are those of the network that is built from it."""

from __future__ import annotations

from math import prod
from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from services.model_config import ModelConfig
from services.network_layers import CHANNELS, Convolution, Dense, Pool, layers_of
from worker.training.model import build_model

CONFIGS = st.builds(
    ModelConfig,
    activation=st.sampled_from(["ReLU", "pReLU"]),
    temporal_size=st.sampled_from([1, 3, 5, 7, 9]),
    pooling_layer=st.sampled_from(["AvgPooling", "MaxPooling"]),
    second_conv_layer=st.booleans(),
    initializer=st.sampled_from(["Xavier uniform", "Xavier normal"]),
    dropout=st.just(0.25),
    width=st.integers(1, 64),
    classes=st.integers(2, 10),
    frames=st.integers(1, 40),
    frame_size=st.integers(16, 160),
    bn_momentum=st.just(0.1),
    batch_norm=st.sampled_from(["before activation", "after activation"]),
    pool_counts_padding=st.booleans(),
    skip_dead_taps=st.booleans(),
)


@given(CONFIGS)
@settings(max_examples=30, deadline=None)
def test_shapes_are_those_of_the_built_network(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = build_model(config).eval()
        clips = torch.empty(2, CHANNELS, *model.clip_shape)
    called: list[tuple[nn.Module, torch.Size, torch.Size]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.AvgPool3d | nn.MaxPool3d | nn.Linear):
            module.register_forward_hook(
                lambda module, given, output: called.append((module, given[0].shape, output.shape))
            )
    # Batch normalisation keeps the shape, and is slow on the meta device.
    with patch.object(nn.BatchNorm3d, "forward", lambda _, x: x):
        logits = model(clips)
    for (module, taken, made), layer in zip(called, layers_of(config), strict=True):
        match layer:
            case Convolution():
                assert isinstance(module, nn.Conv3d)
                assert (layer.inputs, layer.units, *layer.shape) == (taken[1], *made[1:])
                assert layer.kernel == module.kernel_size
            case Pool():
                assert isinstance(module, nn.AvgPool3d | nn.MaxPool3d)
                assert (layer.units, *layer.shape) == (taken[1], *made[2:]) == tuple(made[1:])
                assert (layer.kernel, layer.stride, layer.padding) == (
                    module.kernel_size,
                    module.stride,
                    module.padding,
                )
            case Dense():
                assert isinstance(module, nn.Linear)
                assert (layer.inputs, layer.units) == (taken[1], made[1])
    assert logits.shape == (2, config.classes)


@given(CONFIGS)
@settings(max_examples=10, deadline=None)
def test_weights_are_counted_by_the_layers(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = build_model(config)
    weights = 0
    for layer in layers_of(config):
        if isinstance(layer, Convolution):
            weights += layer.inputs * layer.units * prod(layer.kernel) + 2 * layer.units
        elif isinstance(layer, Dense):
            weights += (layer.inputs + 1) * layer.units
    slopes = sum(isinstance(module, nn.PReLU) for module in model.modules())
    assert sum(parameter.numel() for parameter in model.parameters()) == weights + slopes
