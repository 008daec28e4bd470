"""What the configurations of a study's space cost: clip passes, operations and memory, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

import torch

from cli.forecast.dataset_shape import DatasetShape
from services.contracts import StudySpec, TrainingSettings, configure
from services.folds import Fold, train_clips
from services.grid import grid_axes
from services.model_config import ModelConfig
from services.network_layers import CHANNELS
from services.search_space import PARAMETERS, Hyperparameters, ParameterValue, Range, SearchSpace
from worker.training.augmentation import copies_of
from worker.training.clips import MAX_CLIPS_SHARE
from worker.training.costs import peak_bytes, training_flops
from worker.training.model import EmotionNet, build_model

COST_PARAMETERS = ("temporal_size", "second_conv_layer", "width", "epochs")
"""Parameters that decide how many operations a trial takes."""

MEMORY_PARAMETERS = ("activation", "pooling_layer", "batch_size")
"""Further parameters that decide, together with those, how much memory a trial takes."""

RANGE_POINTS = 3
"""Number of values at which a range of such a parameter is evaluated, both ends included."""

CUDA_CONTEXT_BYTES = 0.6e9
"""Bytes of GPU memory that CUDA and its libraries occupy."""


@dataclass(frozen=True, kw_only=True)
class ConfigurationCost:
    """What one configuration of the space costs."""

    temporal_size: int
    second_conv_layer: bool
    width: int
    epochs: int
    parameters_millions: float
    clip_passes_per_trial: int
    """Maximum: every fold runs all its epochs."""

    gflop_per_clip: float
    """Forward and backward pass, counted as `Forecast.convention` says."""

    gflop_per_clip_without_padding: float
    pflop_per_trial: float
    pflop_per_trial_without_padding: float
    memory_gib: float
    """GiB for the network, the clips and CUDA; the maximum over the space's other parameters, except for an
    enqueued configuration, which has a value of each."""

    useful_flop_per_clip: float
    """Operations that take time: without taps on padding, and with one channel for gray clips if the study's
    economies say so."""


@dataclass(frozen=True, kw_only=True)
class StudyCosts:
    """What the trials of a study cost: first those of enqueued configurations, then those that it draws."""

    trials: int
    enqueued: Sequence[ConfigurationCost]
    searched: Sequence[ConfigurationCost]
    """Every combination of `COST_PARAMETERS` in the space; empty if all trials are enqueued."""

    clip_sets: int
    """Sets of clips that a worker keeps: 2 if trials differ in CLAHE."""

    clip_set_gib: float
    """GiB of one of them, with the augmented copies."""

    def mean(self, value: Callable[[ConfigurationCost], float]) -> float:
        """Mean of a value over the trials; a trial that is drawn counts with the mean over the space."""
        total = sum(map(value, self.enqueued))
        if self.searched:
            total += (self.trials - len(self.enqueued)) * fmean(map(value, self.searched))
        return total / self.trials

    @property
    def configurations(self) -> list[ConfigurationCost]:
        """All of them, the enqueued ones first."""
        return [*self.enqueued, *self.searched]

    @property
    def largest(self) -> ConfigurationCost:
        """The configuration that takes the most memory."""
        return max(self.configurations, key=lambda cost: cost.memory_gib)

    def largest_gib(self, memory_gib: float, *, clips_share: float = MAX_CLIPS_SHARE) -> float:
        """GiB that the largest configuration takes on a device, without clip sets that do not fit there.

        Args:
            memory_gib: GiB of memory of the device.
            clips_share: share of the free memory (0 to 1) that a set may take.
        """
        free = memory_gib - CUDA_CONTEXT_BYTES / 2**30
        elsewhere = 0.0
        for _ in range(self.clip_sets):
            if self.clip_set_gib <= clips_share * free:
                free -= self.clip_set_gib
            else:
                elsewhere += self.clip_set_gib
        return self.largest.memory_gib - elsewhere


def usual_configuration(spec: StudySpec, names: Sequence[str] = tuple(PARAMETERS)) -> dict[str, ParameterValue]:
    """A value for each of these parameters that the space searches: the default if the space contains it,
    otherwise the first option.
    """
    chosen: dict[str, ParameterValue] = {}
    usual = {**Hyperparameters().model_dump(), **spec.training.model_dump()}
    for name, domain in spec.space.items():
        if name not in names:
            continue
        if isinstance(domain, Range):
            inside = domain.low <= usual[name] <= domain.high
            chosen[name] = SearchSpace.model_validate({name: domain}).canonicalize(
                {name: usual[name] if inside else domain.low}
            )[name]
        else:
            chosen[name] = usual[name] if usual[name] in domain else domain[0]
    return chosen


def study_costs(
    spec: StudySpec, shape: DatasetShape, folds: Sequence[Fold]
) -> tuple[ConfigurationCost, StudyCosts]:
    """The cost of the usual configuration, or of the first enqueued one if all are enqueued; and of all trials.

    Args:
        spec: the study.
        shape: its dataset.
        folds: the folds of that dataset.
    """
    enqueued = [_cost(spec, shape, folds, parameters, {}) for parameters in spec.enqueue]
    searched: list[ConfigurationCost] = []
    if _draws(spec):
        largest = _largest(spec, shape)
        usual = _cost(spec, shape, folds, usual_configuration(spec, COST_PARAMETERS), largest)
        combinations = _combinations(spec, COST_PARAMETERS)
        searched = [_cost(spec, shape, folds, parameters, largest) for parameters in combinations]
    costs = StudyCosts(
        trials=spec.trials,
        enqueued=enqueued,
        searched=searched,
        clip_sets=_clip_sets(spec),
        clip_set_gib=_clip_set_bytes(spec, shape, spec.training) / 2**30,
    )
    return (usual if searched else enqueued[0]), costs


def mean_seconds(
    spec: StudySpec, shape: DatasetShape, folds: Sequence[Fold], seconds_per_clip: Callable[[float], float]
) -> float:
    """Seconds of a trial that runs all folds, as `StudyCosts.mean` counts, without computing the memory.

    Args:
        spec: the study.
        shape: its dataset.
        folds: the folds of that dataset.
        seconds_per_clip: gives the seconds for a clip from its number of useful operations.
    """
    trained_on = _clips_trained_on(spec, shape, folds)

    def seconds(parameters: Mapping[str, Any]) -> float:
        hp, training = configure({**usual_configuration(spec), **parameters}, spec.training)
        config = ModelConfig.of(hp, training, spec.economies, classes=len(shape.classes))
        flops = useful_flops(config, spec, shape.channels)
        return training.epochs * trained_on * seconds_per_clip(flops)

    total = sum(map(seconds, spec.enqueue))
    if _draws(spec):
        drawn = fmean(map(seconds, _combinations(spec, COST_PARAMETERS)))
        total += (spec.trials - len(spec.enqueue)) * drawn
    return total / spec.trials


def _cost(
    spec: StudySpec,
    shape: DatasetShape,
    folds: Sequence[Fold],
    parameters: Mapping[str, Any],
    largest: Mapping[str, Any],
) -> ConfigurationCost:
    hp, training = configure({**usual_configuration(spec), **largest, **parameters}, spec.training)
    config = ModelConfig.of(hp, training, spec.economies, classes=len(shape.classes))
    model = _model(config)
    flops = training_flops(model, channels=CHANNELS)
    without = training_flops(model, channels=CHANNELS, count_padding=False)
    passes = training.epochs * _clips_trained_on(spec, shape, folds)
    return ConfigurationCost(
        temporal_size=hp.temporal_size,
        second_conv_layer=hp.second_conv_layer,
        width=training.width,
        epochs=training.epochs,
        parameters_millions=rounded(sum(p.numel() for p in model.parameters()) / 1e6),
        clip_passes_per_trial=passes,
        gflop_per_clip=rounded(flops / 1e9),
        gflop_per_clip_without_padding=rounded(without / 1e9),
        pflop_per_trial=rounded(flops * passes / 1e15),
        pflop_per_trial_without_padding=rounded(without * passes / 1e15),
        memory_gib=rounded(_memory(spec, shape, model, training) / 2**30),
        useful_flop_per_clip=useful_flops(config, spec, shape.channels),
    )


def useful_flops(config: ModelConfig, spec: StudySpec, channels: int) -> float:
    """See `ConfigurationCost.useful_flop_per_clip`; `channels` are those of the clips, 1 or 3."""
    return training_flops(_model(config), channels=_network_channels(spec, channels), count_padding=False)


def _network_channels(spec: StudySpec, channels: int) -> int:
    return 1 if channels == 1 and spec.economies.gray_as_one_channel else CHANNELS


def _combinations(spec: StudySpec, names: Sequence[str]) -> Iterator[dict[str, ParameterValue]]:
    """Every combination of the values of these parameters; those that the space does not search are omitted."""
    searched = {name: domain for name, domain in spec.space.items() if name in names}
    if not searched:
        yield {}
        return
    space = SearchSpace.model_validate(searched)
    axes = grid_axes(space, {name: RANGE_POINTS for name, domain in space.items() if isinstance(domain, Range)})
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _largest(spec: StudySpec, shape: DatasetShape) -> dict[str, ParameterValue]:
    """The values of `MEMORY_PARAMETERS` that take the most memory; they are the same for every architecture."""

    def memory(parameters: dict[str, ParameterValue]) -> float:
        hp, training = configure({**usual_configuration(spec), **parameters}, spec.training)
        config = ModelConfig.of(hp, training, spec.economies, classes=len(shape.classes))
        return _memory(spec, shape, _model(config), training)

    return max(_combinations(spec, MEMORY_PARAMETERS), key=memory)


def _model(config: ModelConfig) -> EmotionNet:
    with torch.device("meta"):
        return build_model(config)


def _memory(spec: StudySpec, shape: DatasetShape, model: EmotionNet, training: TrainingSettings) -> float:
    """Bytes on the device: the peak of a training step, the clips with and without CLAHE, and CUDA."""
    clips = _clip_sets(spec) * _clip_set_bytes(spec, shape, training)
    step = peak_bytes(model, batch_size=training.batch_size, channels=_network_channels(spec, shape.channels))
    return step + clips + CUDA_CONTEXT_BYTES


def _clip_set_bytes(spec: StudySpec, shape: DatasetShape, training: TrainingSettings) -> int:
    return sum(count_copies(spec, shape).values()) * training.frames * training.frame_size**2 * shape.channels


def _clip_sets(spec: StudySpec) -> int:
    variants = {parameters.get("clahe") for parameters in spec.enqueue}
    if _draws(spec):
        variants |= {parameters.get("clahe") for parameters in _combinations(spec, ("clahe",))}
    return len(variants)


def _draws(spec: StudySpec) -> bool:
    """Whether the study runs trials beyond its enqueued configurations."""
    return spec.trials > len(spec.enqueue)


def count_copies(spec: StudySpec, shape: DatasetShape) -> dict[str, int]:
    """For each clip id, how many samples it becomes in training: its windows and their augmented copies."""
    augmentation = spec.training.augmentation
    return {
        clip.clip_id: shape.windows * (1 + copies_of(augmentation.counts_for(shape.classes[clip.label])))
        for clip in shape.clips
    }


def _clips_trained_on(spec: StudySpec, shape: DatasetShape, folds: Sequence[Fold]) -> int:
    """Training clips of one epoch, summed over the folds."""
    copies = count_copies(spec, shape)
    return sum(copies[clip_id] for fold in folds for clip_id in train_clips(shape.clips, fold, spec.protocol))


def rounded(number: float) -> float:
    """Round to four significant digits; nothing in a forecast is more accurate."""
    return float(f"{number:.4g}")
