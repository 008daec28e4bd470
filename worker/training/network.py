"""A network as its compute plan runs it on a device: compiled or not, in a precision and a memory format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from services.contracts import ComputePlan, FoldTask, MemoryFormat
from services.model_config import ModelConfig
from worker.training.model import EmotionNet, build_model
from worker.training.precision import autocast

FORMATS: dict[MemoryFormat, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last_3d,
}

COMPILER_OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {
    # Kernels chosen by timing could change the order of a sum from process to process.
    "deterministic": True,
    # Draw the same dropout as the network that is not compiled.
    "fallback_random": True,
}


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """What a network is built, checked and compiled for. Folds with equal settings can use the same one."""

    config: ModelConfig
    compute: ComputePlan
    batch_size: int
    """Clips of a batch; batches of another length run uncompiled."""

    channels: int
    """Channels of a batch: 1 for gray clips taken as one channel, 3 otherwise."""

    normalization: bool
    """Whether pixels are in [-1, 1] instead of [0, 1]; a plan can be sound for one range only."""

    @staticmethod
    def of(task: FoldTask, *, channels: int) -> NetworkSettings:
        """The settings of a fold whose batches have this number of channels."""
        return NetworkSettings(
            config=ModelConfig.of_task(task),
            compute=task.compute,
            batch_size=task.training.batch_size,
            channels=channels,
            normalization=task.hyperparameters.normalization,
        )


class Network:
    """A model and how it is run. Its weights are fp32 in every plan."""

    def __init__(
        self, settings: NetworkSettings, *, seed: int, device: torch.device, memory_format: MemoryFormat
    ) -> None:
        """Draw the weights from the seed; compilation happens at the first call."""
        self.settings = settings
        self.memory_format = memory_format
        self.model = seeded_model(settings.config, seed=seed, device=device).to(
            memory_format=FORMATS[memory_format]
        )
        self._run: Callable[[Tensor], Tensor] = self.model
        if settings.compute.compiled:
            # Code compiled for earlier configurations counts towards torch's limit. Past the limit torch runs
            # uncompiled and only warns; `fullgraph` makes that an error.
            torch.compiler.reset()
            self._run = torch.compile(self.model, dynamic=False, fullgraph=True, options=COMPILER_OPTIONS)

    def draw_weights(self, seed: int) -> None:
        """Set the initial weights of another fold with the same settings."""
        device = next(self.model.parameters()).device
        fresh = seeded_model(self.settings.config, seed=seed, device=device)
        self.model.load_state_dict(fresh.state_dict())

    def __call__(self, clips: Tensor, *, exactly: bool = False) -> Tensor:
        """Logits, batch x classes, in the type of the weights.

        Args:
            clips: float, batch x channels x frames x size x size.
            exactly: compute in plain fp32, whatever the plan.
        """
        clips = clips.contiguous(memory_format=FORMATS[self.memory_format])
        if exactly:
            exact: Tensor = self.model(clips)
            return exact
        # The last batch of an epoch may have another length, which would be compiled again for every fold.
        run = self._run if len(clips) == self.settings.batch_size else self.model
        with autocast(self.settings.compute.precision, clips.device):
            logits = run(clips)
        return logits.to(next(self.model.parameters()).dtype)


def seeded_model(config: ModelConfig, *, seed: int, device: torch.device) -> EmotionNet:
    """The model of a configuration with the initial weights of a seed. Sets torch's global seed."""
    torch.manual_seed(seed)
    with device:
        return build_model(config)
