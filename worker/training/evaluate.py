"""Predictions of a network for a fold's test clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.training.network import Network

PROBABILITY_DIGITS = 6
"""Decimals that stored probabilities are rounded to."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One row per test clip."""

    predicted: tuple[int, ...]
    probabilities: tuple[tuple[float, ...], ...]
    """Clips x classes, rounded to 6 decimals."""


@torch.no_grad()
def evaluate(
    network: Network, batch: Callable[[Tensor], Tensor], rows: Tensor, batch_size: int, *, windows: int = 1
) -> Predictions:
    """Predict the clips of `rows`, in their order, in fp32, with running statistics and without dropout.

    The probabilities of a clip are the mean of those of its windows, and its label has the largest one. A clip
    whose logits are not finite, in one window or more, gets equal probabilities and the first class.

    Args:
        network: in training or evaluation mode; it stays in evaluation mode.
        batch: gives the network input of some rows.
        rows: int64, on the CPU; the windows of a clip one after another.
        batch_size: rows per forward pass.
        windows: of each clip.
    """
    network.model.eval()
    logits = torch.cat([network(batch(part), exactly=True) for part in torch.split(rows, batch_size)])
    of_windows = torch.softmax(logits.double().cpu(), dim=1)
    probabilities = of_windows.reshape(-1, windows, of_windows.shape[1]).mean(dim=1)
    finite = probabilities.isfinite().all(dim=1, keepdim=True)
    probabilities = torch.where(finite, probabilities, 1 / probabilities.shape[1])
    return Predictions(
        predicted=tuple(probabilities.argmax(dim=1).tolist()),
        probabilities=tuple(
            tuple(round(p, PROBABILITY_DIGITS) for p in clip) for clip in probabilities.tolist()
        ),
    )
