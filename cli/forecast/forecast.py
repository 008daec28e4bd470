"""What `foldwise plan` prints: the cost of a study, forecast before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import numpy as np

from cli.forecast.costs import (
    COST_PARAMETERS,
    ConfigurationCost,
    StudyCosts,
    count_copies,
    rounded,
    study_costs,
)
from cli.forecast.dataset_shape import DatasetShape
from cli.forecast.devices import DeviceForecast, MeasuredSpeed, forecast_devices
from coordinator.pruning.replay import replay, simulated_trials
from services.contracts import StudySpec
from services.errors import InvalidInput
from services.folds import Fold
from services.search_space import ParameterValue
from services.validation import folds_of_study

CONVENTION = (
    "each multiply-add of convolutions and dense layers counts as two operations; the backward pass counts as "
    "twice the forward pass, without the gradient of the input clip; clips have three channels; taps on "
    "padding count"
)

SIMULATED_TRIALS = 100
SIMULATIONS = 3


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What `foldwise plan --json` prints."""

    study: str
    dataset: str
    dataset_known_from: str
    convention: str
    """How operations are counted."""

    clips: int
    subjects: int
    augmented_clips: int
    """Clips together with their augmented copies."""

    folds: int
    trials: int
    configuration: dict[str, ParameterValue]
    """The configuration that the next four fields describe: the paper's best as far as the space contains it,
    otherwise the first options of the space; the first enqueued one if all trials are enqueued."""

    clip_passes_per_trial: int
    pflop_per_trial: float
    pflop_per_trial_without_padding: float
    memory_gib: float
    pflop_per_trial_mean: float
    """Mean over the trials: an enqueued one counts itself, the others count the mean over the space, as for
    configurations drawn at random."""

    clip_passes: int
    """Maximum for the whole study: every fold runs all its epochs."""

    pflop: float
    folds_share_pruned: float | None
    """Share of folds that run with the study's pruning rules (0 to 1), simulated; None if it cannot be."""

    clip_sets: int
    clip_set_gib: float
    """Sets of clips that a worker keeps, and GiB of one; the memory of a configuration includes them."""

    enqueued: list[ConfigurationCost]
    """The enqueued configurations, in their order."""

    configurations: list[ConfigurationCost]
    """Those that the other trials draw from; empty if all trials are enqueued."""

    devices: list[DeviceForecast] = field(default_factory=list)

    def costs(self) -> StudyCosts:
        """The costs of the study's trials."""
        return StudyCosts(
            trials=self.trials,
            enqueued=self.enqueued,
            searched=self.configurations,
            clip_sets=self.clip_sets,
            clip_set_gib=self.clip_set_gib,
        )


def make_forecast(spec: StudySpec, shape: DatasetShape) -> Forecast:
    """Compute what a study takes; `devices` stays empty until `with_devices` fills it.

    Raises:
        InvalidInput: the dataset cannot be split into the study's folds.
    """
    folds = folds_of_study(shape.clips, spec)
    usual, costs = study_costs(spec, shape, folds)
    clip_passes = costs.mean(lambda cost: cost.clip_passes_per_trial)
    pflop = costs.mean(lambda cost: cost.pflop_per_trial)
    return Forecast(
        study=spec.name,
        dataset=shape.name,
        dataset_known_from=shape.source,
        convention=CONVENTION,
        clips=len(shape.clips),
        subjects=shape.subjects,
        augmented_clips=sum(count_copies(spec, shape).values()),
        folds=len(folds),
        trials=spec.trials,
        configuration={name: getattr(usual, name) for name in COST_PARAMETERS},
        clip_passes_per_trial=usual.clip_passes_per_trial,
        pflop_per_trial=usual.pflop_per_trial,
        pflop_per_trial_without_padding=usual.pflop_per_trial_without_padding,
        memory_gib=usual.memory_gib,
        pflop_per_trial_mean=rounded(pflop),
        clip_passes=round(spec.trials * clip_passes),
        pflop=rounded(spec.trials * pflop),
        folds_share_pruned=share_of_folds(spec, shape, folds),
        clip_sets=costs.clip_sets,
        clip_set_gib=rounded(costs.clip_set_gib),
        enqueued=[*costs.enqueued],
        configurations=[*costs.searched],
    )


def with_devices(
    forecast: Forecast, spec: StudySpec, gpus: Sequence[str], measured: MeasuredSpeed | None = None
) -> Forecast:
    """Return the forecast of a study with its hours on GPUs, and on a device that was measured.

    Args:
        forecast: the forecast of the study.
        spec: the study.
        gpus: names of GPUs; an empty sequence means the default ones.
        measured: a measured device, as `forecast_devices` uses it.

    Raises:
        InvalidInput, NotFound: as `forecast_devices`.
    """
    devices = forecast_devices(spec, forecast.costs(), forecast.folds_share_pruned, gpus, measured)
    return replace(forecast, devices=devices)


def share_of_folds(spec: StudySpec, shape: DatasetShape, folds: Sequence[Fold]) -> float | None:
    """Share of folds (0 to 1) that run with the study's rules, on simulated trials.

    None if a rule needs to know which classes a model confuses.
    """
    fold_of = {subject: fold.index for fold in folds for subject in fold.subjects}
    clips: dict[str, int] = dict.fromkeys(fold_of, 0)
    for clip in shape.clips:
        if clip.subject in clips:
            clips[clip.subject] += 1
    trials = min(spec.trials, SIMULATED_TRIALS)
    shares = []
    for seed in range(SIMULATIONS):
        simulated = simulated_trials(
            list(clips.values()), list(fold_of.values()), trials=trials, rng=np.random.default_rng(seed)
        )
        try:
            shares.append(sum(replay(spec, simulated).folds) / (trials * len(folds)))
        except InvalidInput:
            return None
    return rounded(fmean(shares))
