"""Hours that a study takes on this machine, good enough to decide whether to start it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cli.forecast.calibration import glance_at_cpu
from cli.forecast.dataset_shape import DatasetShape
from cli.forecast.devices import DeviceForecast, forecast_devices, forecast_measured
from cli.forecast.forecast import make_forecast
from cli.forecast.gpus import gpu_of_this_machine
from services.contracts import StudySpec
from services.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class HoursHere:
    """Forecasts studies of one dataset on this machine's device."""

    device: str
    """Such as `this CPU` or `one H200`."""

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
                return _hours(
                    forecast_devices(study, made.costs(), made.folds_share_pruned, [gpu.name], None)[0]
                )
            except InvalidInput:
                return None

        return HoursHere(device=f"one {gpu.name}", on_cpu=False, of=on_gpu)
    measured = glance_at_cpu(spec, shape)

    def on_cpu(study: StudySpec) -> float | None:
        made = make_forecast(study, shape)
        return _hours(forecast_measured(study, made.costs(), made.folds_share_pruned, measured))

    return HoursHere(device="this CPU", on_cpu=True, of=on_cpu)


def _hours(forecast: DeviceForecast) -> float | None:
    return forecast.hours if forecast.hours_pruned is None else forecast.hours_pruned
