"""Dropout whose probability is data: networks that differ only in it share their compiled code."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Equals `torch.nn.Dropout` bit for bit on a CPU; `set_probability` needs no new compilation."""

    def __init__(self, probability: float) -> None:
        """Start with this probability (0 to 1) of setting a value to zero."""
        super().__init__()
        # On the CPU, where reading it waits for no device, and not a buffer, which would move with the network.
        self._probability = torch.tensor(probability, dtype=torch.float64, device="cpu")

    def set_probability(self, probability: float) -> None:
        """Change the probability (0 to 1)."""
        self._probability.fill_(probability)

    def forward(self, values: Tensor) -> Tensor:
        """Set values to zero and scale the others up while training; otherwise return them as they are."""
        if not self.training:
            return values
        noise: Tensor = _noise(values.detach(), self._probability)
        return values * noise


# The tag keeps the compiler from drawing the numbers again in the backward pass.
@torch.library.custom_op("foldwise::dropout_noise", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _noise(values: Tensor, probability: Tensor) -> Tensor:
    """Factors of dropout, of the shape and type of `values`: zero, or 1 / (1 - probability)."""
    keep = 1 - probability.item()
    noise = torch.empty_like(values)
    if keep in {0, 1}:
        # torch draws no numbers in these cases.
        return noise.fill_(keep)
    return noise.bernoulli_(keep).div_(keep)


@_noise.register_fake
def _(values: Tensor, probability: Tensor) -> Tensor:
    return torch.empty_like(values)
