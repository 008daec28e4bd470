"""What training costs: operations per clip (a multiplication and an addition are two), and bytes per batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from services.network_layers import CHANNELS, Convolution, Dense, Pool, layers_of
from worker.training.model import EmotionNet


def training_flops(model: EmotionNet, *, channels: int = CHANNELS, count_padding: bool = True) -> int:
    """Operations of convolutions and dense layers for one clip, forward and backward.

    Backward counts twice forward, without the gradient of the clip itself, which training does not compute.

    Args:
        model: may be on the `meta` device, where nothing is computed.
        channels: input channels of the first convolution; 1 for gray clips taken as one channel.
        count_padding: also count kernel taps that only meet frames of padding.
    """
    total = 0
    for index, layer in enumerate(_weighted_layers(model)):
        inputs = channels if index == 0 else layer.inputs
        forward = 2 * inputs * _multiplications_per_input(layer, count_padding)
        total += forward * (2 if index == 0 else 3)
    return total


def training_bytes(model: EmotionNet, *, batch_size: int, channels: int = CHANNELS) -> int:
    """Bytes held at the end of a forward pass in fp32: weights, gradients, Adam's moments, saved activations.

    The workspace of convolutions, the clips and the libraries are not included.

    Args:
        model: may be on the `meta` device, where nothing is computed.
        batch_size: clips of a batch.
        channels: input channels of the first convolution.
    """
    parameters = list(model.parameters())
    own = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Hold the tensor, so that no other one gets its memory and with it its key.
        kept[tensor.untyped_storage()._cdata] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    clips = parameters[0].new_empty(batch_size, channels, *model.clip_shape)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(clips)
    activations = sum(size for key, (size, _) in kept.items() if key not in own)
    return activations + 4 * sum(parameter.nbytes for parameter in parameters)


def peak_bytes(model: EmotionNet, *, batch_size: int, channels: int = CHANNELS) -> int:
    """Maximum bytes held during a step in fp32.

    These are `training_bytes`, plus two gradients early in the backward pass: that of the largest output and
    that of the tensor it was computed from. The workspace of convolutions, the clips and the libraries are not
    included.

    Args:
        model: may be on the `meta` device, where nothing is computed.
        batch_size: clips of a batch.
        channels: input channels of the first convolution.
    """
    largest = max(_outputs(layer) for layer in _weighted_layers(model))
    return training_bytes(model, batch_size=batch_size, channels=channels) + 2 * 4 * batch_size * largest


def _weighted_layers(model: EmotionNet) -> list[Convolution | Dense]:
    # From the configuration: the same however the model nests its modules.
    return [layer for layer in layers_of(model.config) if not isinstance(layer, Pool)]


def _outputs(layer: Convolution | Dense) -> int:
    """Values of the output for one clip."""
    return layer.units * (math.prod(layer.shape) if isinstance(layer, Convolution) else 1)


def _multiplications_per_input(layer: Convolution | Dense, count_padding: bool) -> int:
    """Multiplications for one clip and one input channel of a convolution, or one input of a dense layer."""
    if isinstance(layer, Dense):
        return layer.units
    taps, kernel_height, kernel_width = layer.kernel
    frames, height, width = layer.shape
    pairs = frames * taps
    if not count_padding:
        reach = taps // 2
        pairs = sum(abs(a - b) <= reach for a in range(frames) for b in range(frames))
    return layer.units * pairs * height * width * kernel_height * kernel_width
