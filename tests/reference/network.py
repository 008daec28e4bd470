"""The paper's network and its training as plainly as they can be written, to hold the worker's against.

Nothing here is shared with `worker/`, nothing is economical: full kernels, three channels, formulas term by
term. Written from *3D-CNN for Facial Emotion Recognition in Videos* (ISVC 2020), sections 3.1 to 3.3, and
docs/reproduce.md where the paper leaves something open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class LeakyReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.01 * x)


class ReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, torch.zeros_like(x))


class PReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.25]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)


class ELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        # The exponent is kept from overflowing where its branch is not taken.
        return torch.where(x > 0, x, torch.exp(x.clamp(max=0)) - 1)


class Mish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        softplus = torch.logaddexp(x, torch.zeros_like(x))
        return x * torch.tanh(softplus)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": ReLU,
    "ELU": ELU,
    "pReLU": PReLU,
    "leaky ReLU": LeakyReLU,
    "Mish": Mish,
}


class ReferenceNet(nn.Module):
    """C3D with batch normalisation for 10 frames: five groups of convolutions, then three dense layers.

    Its parameters stand in the order in which a clip meets them.
    """

    def __init__(
        self,
        *,
        temporal_size: int,
        second_conv: bool,
        pooling: str,
        activation: str,
        dropout: float,
        classes: int = 7,
        width: int = 64,
        frame_size: int = 112,
        bn_momentum: float = 0.1,
        batch_norm: str = "before activation",
        pool_counts_padding: bool = True,
    ) -> None:
        super().__init__()
        t, w = temporal_size, width
        act = ACTIVATIONS[activation]

        def conv(inputs: int, filters: int) -> list[nn.Module]:
            convolution = nn.Conv3d(inputs, filters, (t, 3, 3), padding=((t - 1) // 2, 1, 1), bias=False)
            norm = nn.BatchNorm3d(filters, eps=1e-5, momentum=bn_momentum)
            if batch_norm == "before activation":
                return [convolution, norm, act()]
            return [convolution, act(), norm]

        def pool(
            kernel: tuple[int, int, int], stride: tuple[int, int, int], padding: tuple[int, int, int]
        ) -> nn.Module:
            if pooling == "AvgPooling":
                return nn.AvgPool3d(kernel, stride, padding, count_include_pad=pool_counts_padding)
            return nn.MaxPool3d(kernel, stride, padding)

        self.features = nn.Sequential(
            *conv(3, w),
            *(conv(w, w) if second_conv else []),
            pool((1, 2, 2), (1, 2, 2), (0, 0, 0)),
            *conv(w, 2 * w),
            *(conv(2 * w, 2 * w) if second_conv else []),
            pool((2, 2, 2), (2, 2, 2), (0, 0, 0)),
            *conv(2 * w, 4 * w),
            *conv(4 * w, 4 * w),
            pool((2, 2, 2), (2, 2, 2), (0, 0, 0)),
            *conv(4 * w, 8 * w),
            *conv(8 * w, 8 * w),
            pool((2, 2, 2), (2, 2, 2), (0, 0, 0)),
            *conv(8 * w, 8 * w),
            *conv(8 * w, 8 * w),
            pool((1, 2, 2), (2, 2, 2), (0, 1, 1)),
        )
        # 112 is halved four times to 7, and 7 with a border becomes 4; 10 frames become 5, 2, 1, 1.
        side = frame_size // 2 // 2 // 2 // 2 // 2 + 1
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(8 * w * side * side, 64 * w),
            act(),
            nn.Dropout(dropout),
            nn.Linear(64 * w, 64 * w),
            act(),
            nn.Dropout(dropout),
            nn.Linear(64 * w, classes),
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Logits of float clips, batch x 3 x 10 x size x size."""
        logits: Tensor = self.classifier(self.features(clips))
        return logits


PAPERS_SHAPES = {
    "conv1": (64, 10, 112, 112),
    "pool1": (64, 10, 56, 56),
    "conv2": (128, 10, 56, 56),
    "pool2": (128, 5, 28, 28),
    "conv3a": (256, 5, 28, 28),
    "conv3b": (256, 5, 28, 28),
    "pool3": (256, 2, 14, 14),
    "conv4a": (512, 2, 14, 14),
    "conv4b": (512, 2, 14, 14),
    "pool4": (512, 1, 7, 7),
    "conv5a": (512, 1, 7, 7),
    "conv5b": (512, 1, 7, 7),
    "pool5": (512, 1, 4, 4),
    "flatten": (8192,),
    "dense1": (4096,),
    "dense2": (4096,),
    "dense3": (7,),
}
"""What each layer makes of a clip of 10 frames of 112 x 112."""


def parameter_count(*, temporal_size: int, second_conv: bool, prelu: bool = False, classes: int = 7) -> int:
    """Parameters of the network at the paper's width."""
    convolutions = [
        (3, 64),
        *([(64, 64)] if second_conv else []),
        (64, 128),
        *([(128, 128)] if second_conv else []),
        (128, 256),
        (256, 256),
        (256, 512),
        (512, 512),
        (512, 512),
        (512, 512),
    ]
    kernels = sum(inputs * filters * temporal_size * 3 * 3 for inputs, filters in convolutions)
    norms = sum(2 * filters for _, filters in convolutions)
    dense = (8192 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * classes
    slopes = len(convolutions) + 2 if prelu else 0
    return kernels + norms + dense + slopes


class ReferenceOptimizer:
    """Adam as its authors print it (Algorithm 1), alone or inside Lookahead (k = 5, alpha = 0.5)."""

    def __init__(self, start: Sequence[Tensor], *, learning_rate: float, lookahead: bool) -> None:
        self.learning_rate = learning_rate
        self.lookahead = lookahead
        self.weights = [w.detach().clone() for w in start]
        self.slow = [w.clone() for w in self.weights]
        self.first = [torch.zeros_like(w) for w in self.weights]
        self.second = [torch.zeros_like(w) for w in self.weights]
        self.steps = 0

    def step(self, gradients: Sequence[Tensor]) -> None:
        self.steps += 1
        for i, g in enumerate(gradients):
            self.first[i] = 0.9 * self.first[i] + (1 - 0.9) * g
            self.second[i] = 0.999 * self.second[i] + (1 - 0.999) * g * g
            first = self.first[i] / (1 - 0.9**self.steps)
            second = self.second[i] / (1 - 0.999**self.steps)
            self.weights[i] = self.weights[i] - self.learning_rate * first / (second.sqrt() + 1e-8)
            if self.lookahead and self.steps % 5 == 0:
                self.slow[i] = self.slow[i] + 0.5 * (self.weights[i] - self.slow[i])
                self.weights[i] = self.slow[i].clone()


def class_weights(clips_per_class: Sequence[int]) -> list[float]:
    """One over the number of recorded clips, scaled to mean 1 over the classes that have any."""
    inverse = [1 / n if n else 0.0 for n in clips_per_class]
    mean = sum(inverse) / sum(n > 0 for n in clips_per_class)
    return [weight / mean for weight in inverse]


def cross_entropy(logits: Tensor, labels: Tensor, weights: Sequence[float] | None) -> Tensor:
    """Mean over the batch of -log p(label), each clip counting as much as its class weighs."""
    weight = torch.ones(logits.shape[1]) if weights is None else torch.tensor(weights)
    weight = weight.to(logits)
    numerator, denominator = torch.zeros((), dtype=logits.dtype), torch.zeros((), dtype=logits.dtype)
    for logit, label in zip(logits, labels, strict=True):
        probability = torch.exp(logit[label]) / torch.exp(logit).sum()
        numerator = numerator - weight[label] * torch.log(probability)
        denominator = denominator + weight[label]
    return numerator / denominator
