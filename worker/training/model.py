"""The paper's 3D-CNN (section 3.1, Figure 1): C3D with batch normalisation and everything of Table 1 open."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from services.errors import InvalidInput
from services.search_space import Hyperparameters

GROUPS = (1, 2, 4, 8, 8)
"""Filters of each group of convolutions as multiples of the width; the last three have two convolutions."""

CHANNELS = 3
SMALLEST_FRAME = 16


def build_model(
    hp: Hyperparameters,
    *,
    width: int,
    classes: int,
    frames: int,
    frame_size: int,
    bn_momentum: float,
    batch_norm: str = "before activation",
    pool_counts_padding: bool = True,
    skip_dead_taps: bool = True,
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
        batch_norm: `before activation` or `after activation`.
        pool_counts_padding: whether the last average pool counts the padding around it as zeros.
        skip_dead_taps: leave out what only ever meets padding (`TemporalConv`). The weights are the same.

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
        hp,
        width=width,
        classes=classes,
        frames=frames,
        frame_size=frame_size,
        bn_momentum=bn_momentum,
        batch_norm=batch_norm,
        pool_counts_padding=pool_counts_padding,
        skip_dead_taps=skip_dead_taps,
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
        batch_norm: str,
        pool_counts_padding: bool,
        skip_dead_taps: bool,
    ) -> None:
        """Use `build_model`."""
        super().__init__()
        self.clip_shape = (frames, frame_size, frame_size)
        activation = ACTIVATIONS[hp.activation]

        layers: list[nn.Module] = []
        channels, shape = CHANNELS, (frames, frame_size, frame_size)
        for group, multiple in enumerate(GROUPS):
            for _ in range(2 if group >= 2 or hp.second_conv_layer else 1):
                # No bias: batch normalisation subtracts it again.
                layers.append(TemporalConv(channels, width * multiple, hp.temporal_size, skip_dead_taps))
                after = [nn.BatchNorm3d(width * multiple, momentum=bn_momentum), activation()]
                layers += after if batch_norm == "before activation" else after[::-1]
                channels = width * multiple
            pool, shape = _pool(hp.pooling_layer, group, shape, pool_counts_padding)
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

        A gray clip's three equal channels may come as one: the first convolution then sums its weights over
        them, which gives the same values, and each channel's weights the same gradient.

        Raises:
            InvalidInput: clips of another shape.
        """
        if clips.shape[1] not in {1, CHANNELS} or tuple(clips.shape[2:]) != self.clip_shape:
            raise InvalidInput(
                f"clips have shape {tuple(clips.shape)}, the network takes batch x {CHANNELS} x "
                + " x ".join(map(str, self.clip_shape)),
                field="clips",
            )
        logits: Tensor = self.classifier(self.features(clips))
        return logits


class TemporalConv(nn.Conv3d):
    """A convolution with kernel (t, 3, 3) that keeps all three lengths (paper section 3.1).

    On a clip of T frames the taps more than T - 1 frames from the centre meet nothing but padding: they
    give zeros and get zero gradients. Where T is at most t they are left out by taking the clip as one image
    of channels x T channels. The weights keep them.
    """

    def __init__(self, channels: int, filters: int, temporal_size: int, skip_dead_taps: bool = True) -> None:
        self.reach = temporal_size // 2
        self.skip_dead_taps = skip_dead_taps
        super().__init__(channels, filters, (temporal_size, 3, 3), padding=(self.reach, 1, 1), bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Batch x filters x T x H x W of batch x channels (or one for all) x T x H x W."""
        weight, frames = self.weight, input.shape[2]
        if input.shape[1] != weight.shape[1]:
            weight = weight.sum(1, keepdim=True)
        if not self.skip_dead_taps or frames > weight.shape[2]:
            return F.conv3d(input, weight, padding=self.padding)
        image = F.conv2d(input.flatten(1, 2), _between_frames(weight, frames), padding=1)
        return image.view(len(input), -1, frames, *input.shape[3:])


def _between_frames(weight: Tensor, frames: int) -> Tensor:
    """The kernel of a 2D convolution between images of channels x frames channels.

    Entry (filter, frame out, channel, frame in) is the tap that lies between the two frames, zero where
    the kernel does not reach so far.
    """
    reach = weight.shape[2] // 2
    beyond = max(0, frames - 1 - reach)
    taps = F.pad(weight, (0, 0, 0, 0, beyond, beyond))
    first = reach + beyond
    windows = [taps[:, :, first - frame : first - frame + frames] for frame in range(frames)]
    return torch.stack(windows, dim=1).flatten(2, 3).flatten(0, 1)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ELU": nn.ELU,
    "pReLU": nn.PReLU,
    "leaky ReLU": nn.LeakyReLU,
    "Mish": nn.Mish,
}


def _pool(
    kind: str, group: int, shape: tuple[int, int, int], counts_padding: bool
) -> tuple[nn.Module, tuple[int, int, int]]:
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
        # Where padding counts, the last pool's border cells are damped: PyTorch's default, said aloud.
        pool = nn.AvgPool3d(kernel, stride, padding, count_include_pad=counts_padding)
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
