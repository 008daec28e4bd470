"""The optimisers of Table 1 and the weights of the loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from pytorch_optimizer import Lookahead
from torch import Tensor, nn

from services.search_space import Hyperparameters

LOOKAHEAD_STEPS = 5
"""Optimiser steps between two updates of Lookahead's slow weights (k)."""

LOOKAHEAD_ALPHA = 0.5
"""Share of the way to the fast weights that the slow weights move in an update (0 to 1)."""


class Optimizer(Protocol):
    """The calls that training makes; `Lookahead` is not a `torch.optim.Optimizer`."""

    def zero_grad(self) -> None:
        """Clear the gradients."""

    def step(self) -> object:
        """Update the parameters from their gradients."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on, besides the parameters; refers to the optimiser's own tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from this state."""


def build_optimizer(
    hp: Hyperparameters, parameters: Iterable[nn.Parameter], *, learning_rate: float
) -> Optimizer:
    """Adam (paper section 3.1), alone or inside Lookahead with k = 5 and alpha = 0.5 (section 3.3).

    Lookahead comes from `pytorch_optimizer` and behaves as its authors describe: the slow weights start as the
    initial weights; every 5 steps they move half the way to the fast weights, which continue from there; Adam's
    moments stay. The network is evaluated with the fast weights.
    """
    # Fused: one pass over memory for all parameters.
    adam = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    if hp.optimization == "Adam":
        return adam
    lookahead: Optimizer = Lookahead(adam, k=LOOKAHEAD_STEPS, alpha=LOOKAHEAD_ALPHA, pullback_momentum="none")
    return lookahead


def class_weights(labels: Tensor, *, classes: int) -> Tensor:
    """Weights of the classes in the cross-entropy (paper section 3.3): 1 / number of clips of the class.

    They are scaled to mean 1 over the classes present; a class without a clip has weight 0. Pass the labels of
    recorded clips only: augmented copies are already distributed to balance the classes.

    Args:
        labels: int64, one per clip.
        classes: number of classes.

    Returns:
        One weight per class, on the device of `labels`, in torch's default type.
    """
    counts = torch.bincount(labels.cpu(), minlength=classes).double()
    weights = torch.where(counts > 0, 1 / counts, 0.0)
    weights = weights / weights.sum() * (counts > 0).sum()
    return weights.to(labels.device, torch.get_default_dtype())
