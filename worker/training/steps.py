"""The optimiser steps of a fold; a step whose gradient is not finite in its plan is repeated in fp32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from services.contracts import Precision
from worker.training.clips import Batches
from worker.training.network import Network
from worker.training.optim import Optimizer
from worker.training.precision import arithmetic, gradients_finite, remember_statistics

LOSS_INTERVAL_STEPS = 10
"""Optimiser steps between two looks at loss and gradients; each look makes a GPU finish its queue first."""


class Steps:
    """Takes steps without waiting for the device. `settle` looks at the gradients of several steps at once.

    If one of them was not finite, the state from before these steps is restored and they are taken again, one
    by one: with the same random numbers, and the bad ones in fp32. The result is that of looking at every step.
    """

    def __init__(
        self,
        network: Network,
        batches: Batches,
        optimizer: Optimizer,
        *,
        precision: Precision,
        weights: Tensor | None,
    ) -> None:
        """Start with no step taken.

        Args:
            network: to train.
            batches: its clips.
            optimizer: of the network's parameters.
            precision: of the compute plan.
            weights: of the classes in the loss; None: all equal.
        """
        self.redone = 0
        """Steps repeated in fp32, as far as settled."""

        self._network = network
        self._batches = batches
        self._optimizer = optimizer
        self._precision = precision
        self._weights = weights
        self._parameters = list(network.model.parameters())
        self._loss = torch.zeros((), dtype=torch.float64, device=batches.clip_set.device)
        self._restore: Callable[[], None] | None = None
        self._unsettled: list[Tensor] = []
        self._finite: list[Tensor] = []

    def begin_epoch(self) -> None:
        """Start a new sum of losses. Call it when all steps are settled."""
        self._loss = torch.zeros_like(self._loss)

    def take(self, rows: Tensor, clips: Tensor, labels: Tensor) -> None:
        """Take one step.

        Args:
            rows: int64, rows of the clip set, to repeat the step with.
            clips: network input of these rows.
            labels: int64, their true labels.
        """
        if self._precision != "fp32":
            self._restore = self._restore or self._remember()
        loss = self._backward(clips, labels)
        if self._precision != "fp32":
            self._unsettled.append(rows)
            self._finite.append(gradients_finite(self._parameters))
        self._optimizer.step()
        self._add(loss, labels)

    def settle(self) -> Tensor:
        """Make all steps taken so far final; waits for the device.

        Returns:
            Sum of the loss over the clips of this epoch: float64, a scalar on the device.
        """
        if self._restore is not None and not bool(torch.stack(self._finite).all()):
            self._restore()
            for rows in self._unsettled:
                self._take_exactly(rows)
        self._restore = None
        self._unsettled, self._finite = [], []
        return self._loss

    def _take_exactly(self, rows: Tensor) -> None:
        clips, labels = self._batches.clips(rows), self._batches.labels(rows)
        undo = remember_statistics(self._network.model)
        loss = self._backward(clips, labels)
        if not bool(gradients_finite(self._parameters)):
            undo()
            loss = self._backward(clips, labels, exactly=True)
            self.redone += 1
        self._optimizer.step()
        self._add(loss, labels)

    def _backward(self, clips: Tensor, labels: Tensor, *, exactly: bool = False) -> Tensor:
        self._optimizer.zero_grad()
        with arithmetic("fp32" if exactly else self._precision):
            loss = F.cross_entropy(self._network(clips, exactly=exactly), labels, weight=self._weights)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _add(self, loss: Tensor, labels: Tensor) -> None:
        # Once a sum is not finite it stays so; reading it after every step is not necessary.
        self._loss = self._loss + loss * len(labels)

    def _remember(self) -> Callable[[], None]:
        """A function that restores weights, optimiser, sum of losses and random numbers as they are now."""
        model, optimizer, device = self._network.model, self._optimizer, self._loss.device
        weights: dict[str, Any] = {name: value.clone() for name, value in model.state_dict().items()}
        state = copy.deepcopy(optimizer.state_dict())
        loss = self._loss
        random = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

        def restore() -> None:
            model.load_state_dict(weights)
            optimizer.load_state_dict(state)
            self._loss = loss
            if device.type == "cuda":
                torch.cuda.set_rng_state(random, device)
            else:
                torch.set_rng_state(random)

        return restore
