"""The paper's 3D-CNN (section 3.1, Figure 1): C3D with batch normalisation and everything of Table 1 open."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from services.errors import InvalidInput
from services.search_space import Hyperparameters

GROUPS = (1, 2, 4, 8, 8)
"""Filters of each group of convolutions as multiples of the width; the last three have two convolutions."""

SMALLEST_FRAME = 16


def build_model(
    hp: Hyperparameters, *, width: int, classes: int, frames: int, frame_size: int, bn_momentum: float
) -> EmotionNet:
    """The network of a trial with fresh weights, on torch's default device.

    Weights come from torch's global random numbers: seed them first. Convolutions and dense layers are
    Xavier, biases zero. Under `with torch.device("meta")` nothing is allocated.

    Args:
        hp: activation, temporal size, initializer, pooling layer, second conv layer and dropout count here.
        width: filters of the first group; 64 is the paper's, the two dense layers have 64 times as many units.
        classes: units of the last layer.
        frames: frames of a clip.
        frame_size: pixels on a side of a frame.
        bn_momentum: share of a new batch in the running statistics (paper: 0.1).

    Raises:
        InvalidInput: fewer than 1 frame or filter, 2 classes, or 16 pixels.
    """
    for name, value, least in (
        ("frames", frames, 1),
        ("frame_size", frame_size, SMALLEST_FRAME),
        ("width", width, 1),
        ("classes", classes, 2),
    ):
        if value < least:
            raise InvalidInput(f"{name} is {value}, the network needs at least {least}", field=name)
    model = EmotionNet(
        hp, width=width, classes=classes, frames=frames, frame_size=frame_size, bn_momentum=bn_momentum
    )
    _draw_weights(model, hp.initializer)
    return model


class EmotionNet(nn.Module):
    """`features` (convolutions and pools), then `classifier` (three dense layers)."""

    def __init__(
        self,
        hp: Hyperparameters,
        *,
        width: int,
        classes: int,
        frames: int,
        frame_size: int,
        bn_momentum: float,
    ) -> None:
        """Use `build_model`."""
        super().__init__()
        self.clip_shape = (3, frames, frame_size, frame_size)
        activation = ACTIVATIONS[hp.activation]

        layers: list[nn.Module] = []
        channels, shape = 3, (frames, frame_size, frame_size)
        for group, multiple in enumerate(GROUPS):
            for _ in range(2 if group >= 2 or hp.second_conv_layer else 1):
                layers += [
                    # No bias: batch normalisation subtracts it again.
                    TemporalConv(channels, width * multiple, hp.temporal_size),
                    nn.BatchNorm3d(width * multiple, momentum=bn_momentum),
                    activation(),
                ]
                channels = width * multiple
            pool, shape = _pool(hp.pooling_layer, group, shape)
            layers.append(pool)
        self.features = nn.Sequential(*layers)

        dense = 64 * width
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * shape[0] * shape[1] * shape[2], dense),
            activation(),
            nn.Dropout(hp.dropout),
            nn.Linear(dense, dense),
            activation(),
            nn.Dropout(hp.dropout),
            nn.Linear(dense, classes),
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Logits, batch x classes, of float clips, batch x 3 x frames x size x size.

        Raises:
            InvalidInput: clips of another shape.
        """
        if tuple(clips.shape[1:]) != self.clip_shape:
            raise InvalidInput(
                f"clips have shape {tuple(clips.shape)}, the network takes batch x "
                + " x ".join(map(str, self.clip_shape)),
                field="clips",
            )
        logits: Tensor = self.classifier(self.features(clips))
        return logits


class TemporalConv(nn.Conv3d):
    """A convolution with kernel (t, 3, 3) that keeps all three lengths (paper section 3.1).

    On a clip of T frames the taps more than T - 1 frames from the centre meet nothing but padding: they
    give zeros and get zero gradients, so they are left out of the arithmetic. The weights keep them.
    """

    def __init__(self, channels: int, filters: int, temporal_size: int) -> None:
        self.reach = temporal_size // 2
        super().__init__(channels, filters, (temporal_size, 3, 3), padding=(self.reach, 1, 1), bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Batch x filters x T x H x W of batch x channels x T x H x W."""
        reach = min(self.reach, input.shape[2] - 1)
        weight = self.weight[:, :, self.reach - reach : self.reach + reach + 1]
        return F.conv3d(input, weight, padding=(reach, 1, 1))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ELU": nn.ELU,
    "pReLU": nn.PReLU,
    "leaky ReLU": nn.LeakyReLU,
    "Mish": nn.Mish,
}


def _pool(kind: str, group: int, shape: tuple[int, int, int]) -> tuple[nn.Module, tuple[int, int, int]]:
    """The pool that ends a group, and what it makes of (frames, height, width)."""
    # A length of 1 is left as it is, so that short clips and small frames get through.
    frames, height, width = (min(2, length) for length in shape)
    kernel = stride = (frames, height, width)
    padding = (0, 0, 0)
    if group == 0:
        kernel = stride = (1, height, width)
    elif group == len(GROUPS) - 1:
        kernel, stride, padding = (1, height, width), (2, 2, 2), (0, height - 1, width - 1)
    pool: nn.Module
    if kind == "AvgPooling":
        # Padding counts as zeros, so the last pool's border cells are damped: PyTorch's default, said aloud.
        pool = nn.AvgPool3d(kernel, stride, padding, count_include_pad=True)
    else:
        pool = nn.MaxPool3d(kernel, stride, padding)
    after = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding, strict=True)]
    return pool, (after[0], after[1], after[2])


def _draw_weights(model: nn.Module, initializer: str) -> None:
    draw = nn.init.xavier_uniform_ if initializer == "Xavier uniform" else nn.init.xavier_normal_
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
