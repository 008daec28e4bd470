"""The optimisers of Table 1 and the weights of the loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from pytorch_optimizer import Lookahead
from torch import Tensor, nn

from services.search_space import Hyperparameters

LOOKAHEAD_STEPS = 5
LOOKAHEAD_ALPHA = 0.5


class Optimizer(Protocol):
    """What training needs of an optimiser; `Lookahead` is no `torch.optim.Optimizer`."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self) -> object:
        """Move the parameters along their gradients."""


def build_optimizer(
    hp: Hyperparameters, parameters: Iterable[nn.Parameter], *, learning_rate: float
) -> Optimizer:
    """Adam (paper section 3.1), alone or inside Lookahead with k = 5 and alpha = 0.5 (section 3.3).

    Lookahead is `pytorch_optimizer`'s, with the semantics of its authors: the slow weights start as the
    initial weights; every 5 steps they move half the way to the fast ones, which go on from there; Adam's
    moments stay. The network is evaluated with the weights it has, the fast ones.
    """
    # Fused: all parameters in one pass over memory.
    adam = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    if hp.optimization == "Adam":
        return adam
    lookahead: Optimizer = Lookahead(adam, k=LOOKAHEAD_STEPS, alpha=LOOKAHEAD_ALPHA, pullback_momentum="none")
    return lookahead


def class_weights(labels: Tensor, *, classes: int) -> Tensor:
    """Weights of the classes in the cross-entropy (paper section 3.3): one over a class's count of clips.

    They are scaled to mean 1 over the classes present; a class without a clip weighs 0. Counted are
    clips as they were recorded, since augmented copies are dealt out to even the classes.

    Args:
        labels: int64, one per clip.
        classes: how many classes there are.

    Returns:
        classes, on the device of `labels`, in torch's default type.
    """
    counts = torch.bincount(labels.cpu(), minlength=classes).double()
    weights = torch.where(counts > 0, 1 / counts, 0.0)
    weights = weights / weights.sum() * (counts > 0).sum()
    return weights.to(labels.device, torch.get_default_dtype())
