"""What training costs: operations per clip, two for each multiplication and addition, and bytes per batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worker.training.model import CHANNELS, EmotionNet, TemporalConv


def training_flops(model: EmotionNet, *, channels: int = CHANNELS, count_padding: bool = True) -> int:
    """Operations of convolutions and dense layers for one clip, forward and backward.

    Backward is twice forward, less the gradient of the clip itself, which nobody asks for.

    Args:
        model: may be on the `meta` device; nothing is computed.
        channels: that the first convolution takes; 1 for gray clips taken as one channel.
        count_padding: count kernel taps that meet frames of padding as if they met a clip.
    """
    shapes: list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes.append((module, tuple(inputs[0].shape[1:]), tuple(output.shape[1:])))

    layers = [layer for layer in model.modules() if isinstance(layer, TemporalConv | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    training = model.training
    try:
        model.eval()(next(model.parameters()).new_empty(1, channels, *model.clip_shape))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    total = 0
    for place, (layer, taken, given) in enumerate(shapes):
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
