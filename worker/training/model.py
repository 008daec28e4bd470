"""The paper's 3D-CNN (section 3.1, Figure 1): C3D with batch normalisation and everything of Table 1 open.

Networks are built here and nowhere else, from a `ModelConfig` alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from services.errors import InvalidInput
from services.model_config import ModelConfig
from services.network_layers import CHANNELS, Convolution, Dense, Pool, layers_of
from worker.training.dropout import Dropout


def build_model(config: ModelConfig) -> EmotionNet:
    """The network of a configuration with fresh weights, on torch's default device.

    Weights come from torch's global random numbers: seed them first. Convolutions and dense layers are
    Xavier, biases zero. Under `with torch.device("meta")` nothing is allocated.
    """
    model = EmotionNet(config)
    _draw_weights(model, config.initializer)
    return model


class EmotionNet(nn.Module):
    """`features` (convolutions and pools), then `classifier` (three dense layers)."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers with torch's default weights; use `build_model` for those of the paper."""
        super().__init__()
        self.config = config
        self.clip_shape = (config.frames, config.frame_size, config.frame_size)
        activation = ACTIVATIONS[config.activation]

        features: list[nn.Module] = []
        dense: list[Dense] = []
        for layer in layers_of(config):
            match layer:
                case Convolution():
                    features.append(
                        TemporalConv(layer.inputs, layer.units, config.temporal_size, config.skip_dead_taps)
                    )
                    after = [nn.BatchNorm3d(layer.units, momentum=config.bn_momentum), activation()]
                    features += after if config.batch_norm == "before activation" else after[::-1]
                case Pool():
                    features.append(_pool(layer, config))
                case Dense():
                    dense.append(layer)
        self.features = nn.Sequential(*features)

        *hidden, last = dense
        classifier: list[nn.Module] = [nn.Flatten()]
        for layer in hidden:
            classifier += [nn.Linear(layer.inputs, layer.units), activation(), Dropout(config.dropout)]
        self.classifier = nn.Sequential(*classifier, nn.Linear(last.inputs, last.units))

    def fill_channels(self, number: int) -> None:
        """Let the first convolution add channels of zeros up to this number: a matter of speed only."""
        for module in self.features:
            if isinstance(module, TemporalConv):
                module.min_channels = number
                return

    def forward(self, clips: Tensor) -> Tensor:
        """Logits, batch x classes, of float clips, batch x 3 x frames x size x size.

        The three equal channels of a gray clip may be passed as one: the first convolution then sums its
        weights over the channels, which gives the same values and gives each channel's weights the same
        gradient.

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

    On a clip of T frames the taps more than T - 1 frames from the centre only meet padding: they give zeros
    and get zero gradients. Where T is at most t, the clip is convolved as one image of channels x T channels,
    which leaves those taps out of the computation. The weights keep them.
    """

    def __init__(self, channels: int, filters: int, temporal_size: int, skip_dead_taps: bool = True) -> None:
        self.reach = temporal_size // 2
        self.skip_dead_taps = skip_dead_taps
        self.min_channels = 1
        """Input channels below which channels of zeros are added."""

        # No bias: batch normalisation before the activation subtracts it again.
        super().__init__(channels, filters, (temporal_size, 3, 3), padding=(self.reach, 1, 1), bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve batch x channels x T x H x W, or batch x 1 x T x H x W where all channels are equal.

        Returns:
            Batch x filters x T x H x W.
        """
        weight, frames = self.weight, input.shape[2]
        if input.shape[1] != weight.shape[1]:
            weight = weight.sum(1, keepdim=True)
        if (missing := self.min_channels - input.shape[1]) > 0:
            added = (*(0,) * 6, 0, missing)
            input, weight = F.pad(input, added), F.pad(weight, added)
        # The clip does not tell: with one channel it is in both formats.
        last = _is_channels_last(self.weight)
        if not self.skip_dead_taps or frames > weight.shape[2]:
            if last:
                input, weight = _channels_last(input), _channels_last(weight)
            output = F.conv3d(input, weight, padding=self.padding)
        else:
            image, kernel = input.flatten(1, 2), _between_frames(weight, frames)
            if last:
                image, kernel = (each.contiguous(memory_format=torch.channels_last) for each in (image, kernel))
            image = F.conv2d(image, kernel, padding=1)
            output = image.view(len(input), -1, frames, *input.shape[3:])
        return _channels_last(output) if last else output


class MaxPool(nn.MaxPool3d):
    """A maximum pool that keeps the memory format."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool batch x channels x T x H x W."""
        pooled: Tensor = super().forward(input)
        return _in_format_of(input, pooled)


class AveragePool(nn.AvgPool3d):
    """An average pool that keeps the memory format."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool batch x channels x T x H x W."""
        return _in_format_of(input, super().forward(input))


def _is_channels_last(values: Tensor) -> bool:
    # A tensor with one channel is both.
    return values.is_contiguous(memory_format=torch.channels_last_3d) and not values.is_contiguous()


def _in_format_of(input: Tensor, output: Tensor) -> Tensor:
    """`output` in the memory format of `input`: a change of format in every group costs more than it saves."""
    return _channels_last(output) if _is_channels_last(input) else output


def _channels_last(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last_3d)


def _between_frames(weight: Tensor, frames: int) -> Tensor:
    """The kernel of a 2D convolution between images of channels x frames channels.

    Entry (filter, frame out, channel, frame in) is the tap that lies between the two frames, or zero where
    the kernel does not reach from one to the other.
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


def _pool(layer: Pool, config: ModelConfig) -> nn.Module:
    if config.pooling_layer == "AvgPooling":
        # Where padding counts, the border cells of the last pool are damped: PyTorch's default, made explicit.
        return AveragePool(
            layer.kernel, layer.stride, layer.padding, count_include_pad=config.pool_counts_padding
        )
    return MaxPool(layer.kernel, layer.stride, layer.padding)


def _draw_weights(model: nn.Module, initializer: str) -> None:
    draw = nn.init.xavier_uniform_ if initializer == "Xavier uniform" else nn.init.xavier_normal_
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
