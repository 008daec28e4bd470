"""A fold's network as its compute plan runs it on a device: compiled or not, in a precision and a layout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from services.contracts import FoldTask, MemoryFormat
from worker.training.model import EmotionNet, build_model
from worker.training.precision import autocast

FORMATS: dict[MemoryFormat, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last_3d,
}

COMPILER_OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {
    # No choice by timing that would change a sum's order from process to process.
    "deterministic": True,
    # The dropout that the network has when it is not compiled.
    "fallback_random": True,
}


class Network:
    """A model and the way it is run. Weights are fp32 whatever the plan."""

    def __init__(self, task: FoldTask, device: torch.device, memory_format: MemoryFormat) -> None:
        """Weights are drawn from the task's seed; compiled is what is called first."""
        self.model = build_for(task, device).to(memory_format=FORMATS[memory_format])
        self.memory_format = memory_format
        self._plan = task.compute
        self._batch_size = task.training.batch_size
        self._run: Callable[[Tensor], Tensor] = self.model
        if self._plan.compiled:
            # What was compiled for other configurations counts towards a limit, past which torch would go on
            # uncompiled with no more than a warning. `fullgraph` makes that an error.
            torch.compiler.reset()
            self._run = torch.compile(self.model, dynamic=False, fullgraph=True, options=COMPILER_OPTIONS)

    def draw_weights(self, task: FoldTask) -> None:
        """Start anew, from the seed of another fold of the same configuration."""
        device = next(self.model.parameters()).device
        self.model.load_state_dict(build_for(task, device).state_dict())

    def __call__(self, clips: Tensor, *, exactly: bool = False) -> Tensor:
        """Logits, batch x classes, in the type of the weights.

        Args:
            clips: float, batch x channels x frames x size x size.
            exactly: in plain fp32, whatever the plan.
        """
        clips = clips.contiguous(memory_format=FORMATS[self.memory_format])
        if exactly:
            exact: Tensor = self.model(clips)
            return exact
        # A batch of another length, the last one of an epoch, would be compiled anew for every fold.
        run = self._run if len(clips) == self._batch_size else self.model
        with autocast(self._plan.precision, clips.device):
            logits = run(clips)
        return logits.to(next(self.model.parameters()).dtype)


def build_for(task: FoldTask, device: torch.device) -> EmotionNet:
    """The model of a fold with its initial weights: from the fold's seed alone. Sets torch's global seed."""
    training = task.training
    torch.manual_seed(task.seed)
    with device:
        return build_model(
            task.hyperparameters,
            width=training.width,
            classes=len(task.classes),
            frames=training.frames,
            frame_size=training.frame_size,
            bn_momentum=training.bn_momentum,
            batch_norm=training.batch_norm,
            pool_counts_padding=training.pool_counts_padding,
            skip_dead_taps=task.economies.skip_dead_taps,
        )
