"""`foldwise plan`: what a study will cost, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
import torch

from cli.forecast.dataset_shape import DatasetShape
from cli.forecast.gpus import USUAL, Gpu, find_gpus, gpu_of_device
from coordinator.pruning.replay import replay, simulated_trials
from services.contracts import StudySpec, TrainingSettings, configure
from services.errors import InvalidInput
from services.folds import Fold, make_folds, train_clips
from services.grid import grid_axes
from services.model_config import ModelConfig
from services.network_layers import CHANNELS
from services.search_space import PARAMETERS, Hyperparameters, ParameterValue, Range, SearchSpace
from worker.training.augmentation import copies_of
from worker.training.costs import peak_bytes, training_flops
from worker.training.model import EmotionNet, build_model

CONVENTION = (
    "two operations for each multiplication and addition of convolutions and dense layers; backward counts "
    "twice forward, less the gradient of the clip itself; three channels; padding taps counted"
)

COSTLY = ("temporal_size", "second_conv_layer", "width", "epochs")
"""The parameters that decide how many operations a trial takes."""

LARGE = ("activation", "pooling_layer", "batch_size")
"""Those that decide with them how much memory it takes."""

POINTS = 3
"""A range of such a parameter is taken at so many points, both ends among them."""

ASSUMED_UTILISATION = 0.4
"""Of a GPU's peak, where nothing was measured."""

CONTEXT_BYTES = 0.6e9
"""What CUDA and its libraries take for themselves."""

SIMULATED_TRIALS = 100
SIMULATIONS = 3


@dataclass(frozen=True, kw_only=True)
class ConfigurationCost:
    """What one configuration of the space costs. Clips passes and operations are those of a whole trial."""

    temporal_size: int
    second_conv_layer: bool
    width: int
    epochs: int
    parameters_millions: float
    clip_passes_per_trial: int
    gflop_per_clip: float
    """Forward and backward, by the stated convention."""

    gflop_per_clip_without_padding: float
    pflop_per_trial: float
    pflop_per_trial_without_padding: float
    memory_gib: float
    """The most over the activations, pooling layers and batch sizes of the space, with clips and CUDA."""

    useful_flop_per_clip: float
    """Without padding taps, a gray clip as one channel where the study takes it so: time follows from it."""


@dataclass(frozen=True, kw_only=True)
class DeviceForecast:
    """How long the study takes on one device."""

    device: str
    fits: bool
    utilisation: float | None
    """Useful operations over the peak; None where the peak is not known."""

    measured: bool
    """Whether the utilisation was measured, not assumed."""

    hours_per_trial: float | None
    """Mean over the space; None where the device has not the study's precision."""

    hours: float | None
    """The whole study with every fold run."""

    hours_pruned: float | None
    """With the study's rules; None where they cannot be forecast."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `foldwise plan --json` prints."""

    study: str
    dataset: str
    dataset_known_from: str
    convention: str
    clips: int
    subjects: int
    augmented_clips: int
    folds: int
    trials: int
    configuration: dict[str, ParameterValue]
    """The one that the next four are of: the paper's best where the space has it, else its first options."""

    clip_passes_per_trial: int
    pflop_per_trial: float
    pflop_per_trial_without_padding: float
    memory_gib: float
    pflop_per_trial_mean: float
    """Mean over the space, as of configurations drawn at random."""

    clip_passes: int
    """Of the whole study at most: every fold to its last epoch."""

    pflop: float
    folds_share_pruned: float | None
    """The share of folds that the rules let run, simulated; None where they cannot be."""

    configurations: list[ConfigurationCost]
    devices: list[DeviceForecast] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How fast a device was seen to train."""

    device: str
    memory: int | None
    """Bytes; None where it is not known."""

    clips_per_second: Mapping[float, float]
    """By the useful operations of a clip; at least one."""

    def seconds_per_clip(self, flops: float) -> float:
        """Between the measured configurations that cost less and more; beyond them in proportion."""
        known = sorted(self.clips_per_second)
        low, high = known[0], known[-1]
        if flops <= low or flops >= high:
            nearest = low if flops <= low else high
            return flops / nearest / self.clips_per_second[nearest]
        return float(np.interp(flops, known, [1 / self.clips_per_second[each] for each in known]))

    def operations_per_second(self) -> float:
        """Of the dearest configuration that was measured."""
        dearest = max(self.clips_per_second)
        return dearest * self.clips_per_second[dearest]


def make_plan(spec: StudySpec, shape: DatasetShape) -> Plan:
    """What a study takes, by arithmetic alone, on no device yet.

    Raises:
        InvalidInput: the study cannot be split on this dataset.
    """
    folds = make_folds(shape.clips, spec.protocol)
    largest = _largest(spec, shape)
    costs = [_cost(spec, shape, folds, parameters, largest) for parameters in _grid(spec, COSTLY)]
    cost = _cost(spec, shape, folds, usual_configuration(spec, COSTLY), largest)
    passes = fmean(each.clip_passes_per_trial for each in costs)
    return Plan(
        study=spec.name,
        dataset=shape.name,
        dataset_known_from=shape.source,
        convention=CONVENTION,
        clips=len(shape.clips),
        subjects=shape.subjects,
        augmented_clips=sum(_rows(spec, shape).values()),
        folds=len(folds),
        trials=spec.trials,
        configuration={name: getattr(cost, name) for name in COSTLY},
        clip_passes_per_trial=cost.clip_passes_per_trial,
        pflop_per_trial=cost.pflop_per_trial,
        pflop_per_trial_without_padding=cost.pflop_per_trial_without_padding,
        memory_gib=cost.memory_gib,
        pflop_per_trial_mean=_rounded(fmean(each.pflop_per_trial for each in costs)),
        clip_passes=round(spec.trials * passes),
        pflop=_rounded(spec.trials * fmean(each.pflop_per_trial for each in costs)),
        folds_share_pruned=_folds_share(spec, shape, folds),
        configurations=costs,
    )


def on_devices(plan: Plan, spec: StudySpec, gpus: Sequence[str], measured: Measured | None = None) -> Plan:
    """The plan with forecasts for GPUs, and for a device that was measured.

    Args:
        plan: of the study.
        spec: the study.
        gpus: names of GPUs; none means the usual ones.
        measured: comes first, and if it is a GPU that is known, its utilisation stands for the others too.

    Raises:
        InvalidInput: the study does not fit the memory of a GPU that was named, of the measured device, or of
            any of the usual ones.
        NotFound: no such GPU.
    """
    named = find_gpus(gpus)
    devices = _forecasts(spec, plan, named or find_gpus(USUAL), measured)
    asked = [gpu.name for gpu in named] + ([] if measured is None else [measured.device])
    _check_fit(spec, plan, devices, asked)
    return replace(plan, devices=devices)


def usual_configuration(spec: StudySpec, names: Sequence[str] = tuple(PARAMETERS)) -> dict[str, ParameterValue]:
    """Of each of these parameters that the space searches the value it has where none does, if that is among
    its options; or else the first option.
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
        parameters_millions=_rounded(sum(p.numel() for p in model.parameters()) / 1e6),
        clip_passes_per_trial=passes,
        gflop_per_clip=_rounded(flops / 1e9),
        gflop_per_clip_without_padding=_rounded(without / 1e9),
        pflop_per_trial=_rounded(flops * passes / 1e15),
        pflop_per_trial_without_padding=_rounded(without * passes / 1e15),
        memory_gib=_rounded(_memory(spec, shape, model, training) / 2**30),
        useful_flop_per_clip=useful_flops(config, spec, shape.channels),
    )


def useful_flops(config: ModelConfig, spec: StudySpec, channels: int) -> float:
    """See `ConfigurationCost.useful_flop_per_clip`; `channels` are those of the clips, 1 or 3."""
    return training_flops(_model(config), channels=_network_channels(spec, channels), count_padding=False)


def _network_channels(spec: StudySpec, channels: int) -> int:
    return 1 if channels == 1 and spec.economies.gray_as_one_channel else CHANNELS


def _grid(spec: StudySpec, names: Sequence[str]) -> Iterator[dict[str, ParameterValue]]:
    """Every combination of these parameters' values as far as the space searches them."""
    searched = {name: domain for name, domain in spec.space.items() if name in names}
    if not searched:
        yield {}
        return
    space = SearchSpace.model_validate(searched)
    axes = grid_axes(space, {name: POINTS for name, domain in space.items() if isinstance(domain, Range)})
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _largest(spec: StudySpec, shape: DatasetShape) -> dict[str, ParameterValue]:
    """Of the parameters that count for memory alone the values that take most, in any architecture."""

    def memory(parameters: dict[str, ParameterValue]) -> float:
        hp, training = configure({**usual_configuration(spec), **parameters}, spec.training)
        config = ModelConfig.of(hp, training, spec.economies, classes=len(shape.classes))
        return _memory(spec, shape, _model(config), training)

    return max(_grid(spec, LARGE), key=memory)


def _model(config: ModelConfig) -> EmotionNet:
    with torch.device("meta"):
        return build_model(config)


def _memory(spec: StudySpec, shape: DatasetShape, model: EmotionNet, training: TrainingSettings) -> float:
    """Bytes on the device: the worst moment of a step, the clips with and without CLAHE, and CUDA."""
    clip = training.frames * training.frame_size**2 * shape.channels
    clips = sum(_rows(spec, shape).values()) * clip * len(list(_grid(spec, ("clahe",))))
    step = peak_bytes(model, batch_size=training.batch_size, channels=_network_channels(spec, shape.channels))
    return step + clips + CONTEXT_BYTES


def _rows(spec: StudySpec, shape: DatasetShape) -> dict[str, int]:
    """A clip and its augmented copies, by its id."""
    augmentation = spec.training.augmentation
    return {
        clip.clip_id: 1 + copies_of(augmentation.counts_for(shape.classes[clip.label])) for clip in shape.clips
    }


def _clips_trained_on(spec: StudySpec, shape: DatasetShape, folds: Sequence[Fold]) -> int:
    """In one epoch of every fold."""
    rows = _rows(spec, shape)
    return sum(rows[clip_id] for fold in folds for clip_id in train_clips(shape.clips, fold, spec.protocol))


def _folds_share(spec: StudySpec, shape: DatasetShape, folds: Sequence[Fold]) -> float | None:
    """The share of folds that a study's rules let run, on simulated trials."""
    fold_of = {subject: fold.index for fold in folds for subject in fold.subjects}
    clips: dict[str, int] = dict.fromkeys(fold_of, 0)
    for clip in shape.clips:
        if clip.subject in clips:
            clips[clip.subject] += 1
    trials = min(spec.trials, SIMULATED_TRIALS)
    ran = []
    for seed in range(SIMULATIONS):
        simulated = simulated_trials(
            list(clips.values()), list(fold_of.values()), trials=trials, rng=np.random.default_rng(seed)
        )
        try:
            ran.append(sum(replay(spec, simulated).folds) / (trials * len(folds)))
        except InvalidInput:
            return None
    return _rounded(fmean(ran))


def _forecasts(
    spec: StudySpec, plan: Plan, gpus: Sequence[Gpu], measured: Measured | None
) -> list[DeviceForecast]:
    costs, share = plan.configurations, plan.folds_share_pruned
    largest = max(cost.memory_gib for cost in costs)
    found = []
    utilisation = None
    if measured is not None:
        gpu = gpu_of_device(measured.device)
        peak = None if gpu is None else gpu.peak(spec.compute)
        utilisation = None if peak is None else measured.operations_per_second() / peak
        per_trial = fmean(
            cost.clip_passes_per_trial * measured.seconds_per_clip(cost.useful_flop_per_clip) for cost in costs
        )
        fits = measured.memory is None or largest * 2**30 <= measured.memory
        found.append(_forecast(spec, measured.device, fits, utilisation, True, per_trial, share))
    for gpu in gpus:
        peak = gpu.peak(spec.compute)
        used = ASSUMED_UTILISATION if utilisation is None else utilisation
        seconds = None
        if peak is not None:
            seconds = (
                fmean(cost.clip_passes_per_trial * cost.useful_flop_per_clip for cost in costs) / peak / used
            )
        fits = largest <= gpu.memory
        found.append(_forecast(spec, gpu.name, fits, used, utilisation is not None, seconds, share))
    return found


def _forecast(
    spec: StudySpec,
    device: str,
    fits: bool,
    utilisation: float | None,
    measured: bool,
    seconds_per_trial: float | None,
    share: float | None,
) -> DeviceForecast:
    hours = None if seconds_per_trial is None else seconds_per_trial / 3600
    return DeviceForecast(
        device=device,
        fits=fits,
        utilisation=None if utilisation is None else _rounded(utilisation),
        measured=measured,
        hours_per_trial=None if hours is None else _rounded(hours),
        hours=None if hours is None else _rounded(hours * spec.trials),
        hours_pruned=None if hours is None or share is None else _rounded(hours * spec.trials * share),
    )


def _check_fit(spec: StudySpec, plan: Plan, devices: Sequence[DeviceForecast], asked: Sequence[str]) -> None:
    """Refuse what does not fit a device that was asked for, or none of those there are."""
    too_small = [device for device in devices if not device.fits]
    refused = [device for device in too_small if device.device in asked]
    if not refused and len(too_small) < len(devices):
        return
    dearest = max(plan.configurations, key=lambda cost: cost.memory_gib)
    device = (refused or too_small)[-1]
    raise InvalidInput(
        f"training.batch_size is {spec.training.batch_size}, width {dearest.width}, temporal_size "
        f"{dearest.temporal_size}: that takes {dearest.memory_gib:.1f} GiB, more than {device.device} has; "
        "lower training.batch_size or width, leave such values out of the space, or use a larger device",
        field="training.batch_size",
    )


def _rounded(number: float) -> float:
    """Four significant digits: nothing here is known better."""
    return float(f"{number:.4g}")
