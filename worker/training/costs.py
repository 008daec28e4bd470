"""What training costs: operations per clip, two for each multiplication and addition, and bytes per batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from worker.training.model import CHANNELS, EmotionNet, TemporalConv


def training_flops(model: EmotionNet, *, channels: int = CHANNELS, count_padding: bool = True) -> int:
    """Operations of convolutions and dense layers for one clip, forward and backward.

    Backward is twice forward, less the gradient of the clip itself, which nobody asks for.

    Args:
        model: may be on the `meta` device; nothing is computed there.
        channels: that the first convolution takes; 1 for gray clips taken as one channel.
        count_padding: count kernel taps that meet frames of padding as if they met a clip.
    """
    total = 0
    for place, (layer, taken, given) in enumerate(_shapes(model, channels)):
        forward = 2 * _multiplications(layer, taken, given, count_padding)
        total += forward * (2 if place == 0 else 3)
    return total


def training_bytes(model: EmotionNet, *, batch_size: int, channels: int = CHANNELS) -> int:
    """Bytes held at the end of a forward pass in fp32: weights, gradients, Adam's moments, what backward needs.

    What convolutions borrow while they compute, the clips and the libraries come on top.

    Args:
        model: may be on the `meta` device; nothing is computed there.
        batch_size: clips of a batch.
        channels: that the first convolution takes.
    """
    parameters = list(model.parameters())
    own = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        # The tensor is held so that no other takes its place in memory, and its key.
        kept[tensor.untyped_storage()._cdata] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    clips = parameters[0].new_empty(batch_size, channels, *model.clip_shape)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(clips)
    activations = sum(size for key, (size, _) in kept.items() if key not in own)
    return activations + 4 * sum(parameter.nbytes for parameter in parameters)


def peak_bytes(model: EmotionNet, *, batch_size: int, channels: int = CHANNELS) -> int:
    """Bytes held at the worst moment of a step in fp32: `training_bytes`, and early in the backward pass the
    gradient of the largest output together with that of what made it.

    What convolutions borrow while they compute, the clips and the libraries come on top.

    Args:
        model: may be on the `meta` device; nothing is computed there.
        batch_size: clips of a batch.
        channels: that the first convolution takes.
    """
    largest = max(math.prod(given) for _, _, given in _shapes(model, channels))
    return training_bytes(model, batch_size=batch_size, channels=channels) + 2 * 4 * batch_size * largest


def _shapes(model: EmotionNet, channels: int) -> list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]]:
    """Convolutions and dense layers in order, with the shapes of what each takes and gives for a clip."""
    shapes: list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = []
    clip = next(model.parameters()).new_empty(1, channels, *model.clip_shape)
    with torch.no_grad():
        for layer in (*model.features, *model.classifier):
            # The others change no shape, and on the `meta` device batch normalisation is slow.
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
