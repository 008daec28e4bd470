"""A network as its compute plan runs it on a device: compiled or not, in a precision and a memory format."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from services.compute_plans import memory_format, min_channels
from services.contracts import ComputePlan, FoldTask, MemoryFormat
from services.model_config import ModelConfig
from worker.training.dropout import Dropout
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
    """What a network is built, checked and compiled for."""

    config: ModelConfig
    compute: ComputePlan
    memory_format: MemoryFormat
    batch_size: int
    """Clips of a batch; batches of another length run uncompiled."""

    channels: int
    """Channels of a batch: 1 for gray clips taken as one channel, 3 otherwise."""

    normalization: bool
    """Whether pixels are in [-1, 1] instead of [0, 1]; a plan can be sound for one range only."""

    threads: int
    """CPU threads; the compiler writes them into its code for a CPU."""

    @staticmethod
    def of(task: FoldTask, *, channels: int, device: torch.device) -> NetworkSettings:
        """The settings of a fold with batches of this number of channels; torch's threads as they are."""
        return NetworkSettings(
            config=ModelConfig.of_task(task),
            compute=task.compute,
            memory_format=task.memory_format or memory_format(task.compute, on_gpu=device.type == "cuda"),
            batch_size=task.training.batch_size,
            channels=channels,
            normalization=task.hyperparameters.normalization,
            threads=torch.get_num_threads(),
        )

    def code_key(self) -> Hashable:
        """What decides the network's code: settings of equal keys share one network, compiled once."""
        return (
            self.config.architecture(),
            self.compute,
            self.memory_format,
            self.batch_size,
            self.channels,
            self.threads,
        )

    def check_key(self) -> Hashable:
        """What decides whether the compute plan is sound: settings of equal keys share one check."""
        return self.code_key(), self.normalization


class Network:
    """A model and how it is run. Its weights are fp32 in every plan."""

    def __init__(self, settings: NetworkSettings, *, seed: int, device: torch.device) -> None:
        """Draw the weights from the seed; compilation happens at the first call."""
        self.settings = settings
        self.model = seeded_model(settings.config, seed=seed, device=device).to(
            memory_format=FORMATS[settings.memory_format]
        )
        self.model.fill_channels(min_channels(settings.compute, on_gpu=device.type == "cuda"))
        self._run: Callable[[Tensor], Tensor] = self.model
        if settings.compute.compiled:
            # Code compiled for earlier configurations counts towards torch's limit. Past the limit torch runs
            # uncompiled and only warns; `fullgraph` makes that an error.
            torch.compiler.reset()
            self._run = torch.compile(self.model, dynamic=False, fullgraph=True, options=COMPILER_OPTIONS)

    def begin(self, settings: NetworkSettings, seed: int) -> None:
        """Prepare for another fold: its dropout, and the initial weights of its seed.

        Args:
            settings: of the fold, with the same `code_key` as the network's.
            seed: of the weights.
        """
        self.settings = settings
        device = next(self.model.parameters()).device
        fresh = seeded_model(settings.config, seed=seed, device=device)
        self.model.load_state_dict(fresh.state_dict())
        for module in self.model.modules():
            if isinstance(module, Dropout):
                module.set_probability(settings.config.dropout)

    def __call__(self, clips: Tensor, *, exactly: bool = False) -> Tensor:
        """Logits, batch x classes, in the type of the weights.

        Args:
            clips: float, batch x channels x frames x size x size.
            exactly: compute in plain fp32, whatever the plan.
        """
        clips = clips.contiguous(memory_format=FORMATS[self.settings.memory_format])
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
