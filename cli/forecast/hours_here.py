"""Hours that a study takes on this machine, good enough to decide whether to start it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cli.forecast.calibration import GLANCE_SECONDS, glance_at_cpu
from cli.forecast.costs import mean_seconds
from cli.forecast.dataset_shape import DatasetShape
from cli.forecast.devices import forecast_devices
from cli.forecast.forecast import make_forecast, share_of_folds
from cli.forecast.gpus import gpu_of_this_machine
from services.contracts import StudySpec
from services.errors import InvalidInput
from services.validation import folds_of_study


@dataclass(frozen=True, kw_only=True)
class HoursHere:
    """Forecasts studies of one dataset on this machine's device."""

    device: str
    """Such as `this CPU` or `one H200`."""

    how: str
    """How exact the hours are, to be printed after them."""

    on_cpu: bool
    of: Callable[[StudySpec], float | None]
    """Hours of a study with its pruning; None if it does not fit the device."""


def hours_here(spec: StudySpec, shape: DatasetShape) -> HoursHere | None:
    """Forecasts for this machine: by its GPU's data sheet, or by a measurement of its CPU that takes seconds.

    Args:
        spec: a study on the dataset, whose clip size and network are measured.
        shape: the dataset.

    Returns:
        None if the machine has a GPU without a known data sheet.
    """
    if torch.cuda.is_available():
        gpu = gpu_of_this_machine()
        if gpu is None:
            return None

        def on_gpu(study: StudySpec) -> float | None:
            made = make_forecast(study, shape)
            try:
                device = forecast_devices(study, made.costs(), made.folds_share_pruned, [gpu.name], None)[0]
            except InvalidInput:
                return None
            return device.hours if device.hours_pruned is None else device.hours_pruned

        return HoursHere(device=f"one {gpu.name}", how=" (by its data sheet)", on_cpu=False, of=on_gpu)
    measured = glance_at_cpu(spec, shape)

    def on_cpu(study: StudySpec) -> float | None:
        folds = folds_of_study(shape.clips, study)
        seconds = mean_seconds(study, shape, folds, measured.seconds_per_clip)
        share = share_of_folds(study, shape, folds)
        return study.trials * seconds / 3600 * (1.0 if share is None else share)

    how = f", measured for {GLANCE_SECONDS:g} seconds; other programs slow it down"
    return HoursHere(device="this CPU", how=how, on_cpu=True, of=on_cpu)
