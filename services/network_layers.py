"""The layers of the paper's 3D-CNN (section 3.1, Figure 1) and the shapes between them, as functions of the
configuration. The worker builds its modules from them, and the report draws them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from services.model_config import ModelConfig

CHANNELS = 3
"""Channels of a clip as the first convolution counts them; a gray clip has three equal ones."""

GROUPS = (1, 2, 4, 8, 8)
"""Filters of each group of convolutions as multiples of the width; the last three have two convolutions."""

DENSE_UNITS = 64
"""Units of the two hidden dense layers as a multiple of the width."""

Lengths = tuple[int, int, int]
"""Frames, height, width."""


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution that keeps all three lengths; batch normalisation and activation belong to it."""

    inputs: int
    """Channels."""

    units: int
    """Filters."""

    kernel: Lengths
    shape: Lengths
    """Of its output, without channels."""

    optional: bool
    """Whether only `second_conv_layer` puts it there."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The pool that ends a group of convolutions."""

    units: int
    """Channels, which it keeps."""

    kernel: Lengths
    stride: Lengths
    padding: Lengths
    shape: Lengths
    """Of its output, without channels."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A dense layer. Those before the last one are followed by the activation and dropout."""

    inputs: int
    units: int


Layer = Convolution | Pool | Dense


def layers_of(config: ModelConfig) -> list[Layer]:
    """The layers of a network in their order, each with the shape of its output for one clip."""
    return list(_layers(config))


def _layers(config: ModelConfig) -> Iterator[Layer]:
    channels = CHANNELS
    lengths: Lengths = (config.frames, config.frame_size, config.frame_size)
    for group, multiple in enumerate(GROUPS):
        filters = config.width * multiple
        always_two = group >= 2
        for number in range(2 if always_two or config.second_conv_layer else 1):
            yield Convolution(
                inputs=channels,
                units=filters,
                kernel=(config.temporal_size, 3, 3),
                shape=lengths,
                optional=number == 1 and not always_two,
            )
            channels = filters
        pool = _pool(group, channels, lengths)
        yield pool
        lengths = pool.shape
    inputs, hidden = channels * prod(lengths), DENSE_UNITS * config.width
    for units in (hidden, hidden, config.classes):
        yield Dense(inputs=inputs, units=units)
        inputs = units


def _pool(group: int, channels: int, lengths: Lengths) -> Pool:
    # A length of 1 stays 1, so that short clips and small frames get through.
    frames, height, width = (min(2, length) for length in lengths)
    kernel = stride = (frames, height, width)
    padding = (0, 0, 0)
    if group == 0:
        kernel = stride = (1, height, width)
    elif group == len(GROUPS) - 1:
        kernel, stride, padding = (1, height, width), (2, 2, 2), (0, height - 1, width - 1)
    shape = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(lengths, kernel, stride, padding, strict=True))
    return Pool(
        units=channels,
        kernel=kernel,
        stride=stride,
        padding=padding,
        shape=(shape[0], shape[1], shape[2]),
    )
