"""What training costs: operations per clip (a multiplication and an addition are two), and bytes per batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from services.network_layers import CHANNELS
from worker.training.model import EmotionNet, TemporalConv


def training_flops(model: EmotionNet, *, channels: int = CHANNELS, count_padding: bool = True) -> int:
    """Operations of convolutions and dense layers for one clip, forward and backward.

    Backward counts twice forward, without the gradient of the clip itself, which training does not compute.

    Args:
        model: may be on the `meta` device, where nothing is computed.
        channels: input channels of the first convolution; 1 for gray clips taken as one channel.
        count_padding: also count kernel taps that only meet frames of padding.
    """
    total = 0
    for index, (layer, taken, given) in enumerate(_shapes(model, channels)):
        forward = 2 * _multiplications(layer, taken, given, count_padding)
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
    largest = max(math.prod(given) for _, _, given in _shapes(model, channels))
    return training_bytes(model, batch_size=batch_size, channels=channels) + 2 * 4 * batch_size * largest


def _shapes(model: EmotionNet, channels: int) -> list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]]:
    """Convolutions and dense layers in order, each with the shapes of its input and output for one clip."""
    shapes: list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = []
    clip = next(model.parameters()).new_empty(1, channels, *model.clip_shape)
    with torch.no_grad():
        for layer in (*model.features, *model.classifier):
            # The other layers keep the shape, and batch normalisation is slow on the `meta` device.
            if not isinstance(layer, TemporalConv | nn.Linear | nn.AvgPool3d | nn.MaxPool3d | nn.Flatten):
                continue
            output = layer(clip)
            if isinstance(layer, TemporalConv | nn.Linear):
                shapes.append((layer, tuple(clip.shape[1:]), tuple(output.shape[1:])))
            clip = output
    return shapes


def _multiplications(
    layer: nn.Module, taken: tuple[int, ...], given: tuple[int, ...], count_padding: bool
) -> int:
    if not isinstance(layer, TemporalConv):
        return taken[0] * given[0]
    filters, frames, height, width = given
    pairs = frames * layer.kernel_size[0]
    if not count_padding:
        pairs = sum(abs(a - b) <= layer.reach for a in range(frames) for b in range(frames))
    return taken[0] * filters * pairs * height * width * layer.kernel_size[1] * layer.kernel_size[2]
