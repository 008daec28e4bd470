"""How long a study takes on each device: from peak rates of GPUs, or from a measured speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from cli.forecast.costs import ConfigurationCost, rounded
from cli.forecast.gpus import DEFAULT_GPUS, Gpu, find_gpus, gpu_of_device
from services.contracts import StudySpec
from services.errors import InvalidInput

ASSUMED_UTILISATION = 0.4
"""Share of a GPU's peak rate that we assume if nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class DeviceForecast:
    """How long the study takes on one device."""

    device: str
    fits: bool
    """Whether every configuration of the space fits the device's memory."""

    utilisation: float | None
    """Useful operations per second divided by the peak rate; None if the peak rate is unknown."""

    measured: bool
    """Whether the utilisation was measured (True) or assumed (False)."""

    hours_per_trial: float | None
    """Mean over the space; None if the device does not support the study's precision."""

    hours: float | None
    """The whole study, if every fold runs."""

    hours_pruned: float | None
    """The whole study with its pruning rules; None if their effect cannot be forecast."""


@dataclass(frozen=True, kw_only=True)
class MeasuredSpeed:
    """How fast a device trains configurations of the space."""

    device: str
    memory: int | None
    """Bytes of memory; None if unknown."""

    clips_per_second: Mapping[float, float]
    """Training clips per second by the useful operations of a clip; at least one entry."""

    def seconds_per_clip(self, flops: float) -> float:
        """Seconds for a clip that takes `flops` useful operations.

        Interpolated between the measured configurations; in proportion to the nearest one outside their range.
        """
        known = sorted(self.clips_per_second)
        low, high = known[0], known[-1]
        if flops <= low or flops >= high:
            nearest = low if flops <= low else high
            return flops / nearest / self.clips_per_second[nearest]
        return float(np.interp(flops, known, [1 / self.clips_per_second[each] for each in known]))

    def operations_per_second(self) -> float:
        """Useful operations per second of the most expensive measured configuration."""
        most_expensive = max(self.clips_per_second)
        return most_expensive * self.clips_per_second[most_expensive]


def forecast_devices(
    spec: StudySpec,
    costs: Sequence[ConfigurationCost],
    share_of_folds: float | None,
    gpus: Sequence[str],
    measured: MeasuredSpeed | None,
) -> list[DeviceForecast]:
    """Forecast the hours of a study on each device.

    Args:
        spec: the study.
        costs: costs of the configurations in its space.
        share_of_folds: share of folds that run with the study's pruning rules (0 to 1); None if unknown.
        gpus: names of GPUs; an empty sequence means the default ones.
        measured: a measured device, which is listed first. If it is a known GPU, its utilisation also holds for
            the other GPUs.

    Raises:
        InvalidInput: the study does not fit the memory of a named GPU, of the measured device, or of any
            default GPU.
        NotFound: a GPU is unknown.
    """
    named = find_gpus(gpus)
    devices = []
    utilisation = None
    largest = max(cost.memory_gib for cost in costs)
    if measured is not None:
        gpu = gpu_of_device(measured.device)
        peak = None if gpu is None else _peak(gpu, spec)
        utilisation = None if peak is None else measured.operations_per_second() / peak
        seconds = fmean(
            cost.clip_passes_per_trial * measured.seconds_per_clip(cost.useful_flop_per_clip) for cost in costs
        )
        fits = measured.memory is None or largest * 2**30 <= measured.memory
        devices.append(_forecast(spec, measured.device, fits, utilisation, True, seconds, share_of_folds))
    useful_flops = fmean(cost.clip_passes_per_trial * cost.useful_flop_per_clip for cost in costs)
    for gpu in named or find_gpus(DEFAULT_GPUS):
        used = ASSUMED_UTILISATION if utilisation is None else utilisation
        devices.append(
            _forecast(
                spec,
                gpu.name,
                largest <= gpu.memory,
                used,
                utilisation is not None,
                _seconds_per_trial(gpu, spec, useful_flops, used),
                share_of_folds,
            )
        )
    required = [gpu.name for gpu in named] + ([] if measured is None else [measured.device])
    _check_memory(spec, costs, devices, required)
    return devices


def _seconds_per_trial(gpu: Gpu, spec: StudySpec, useful_flops: float, utilisation: float) -> float | None:
    peak = _peak(gpu, spec)
    return None if peak is None else useful_flops / peak / utilisation


def _peak(gpu: Gpu, spec: StudySpec) -> float | None:
    plan = gpu.plan(spec.compute)
    return None if plan is None else gpu.peak(plan)


def _forecast(
    spec: StudySpec,
    device: str,
    fits: bool,
    utilisation: float | None,
    measured: bool,
    seconds_per_trial: float | None,
    share_of_folds: float | None,
) -> DeviceForecast:
    hours = None if seconds_per_trial is None else seconds_per_trial / 3600
    pruned = None if hours is None or share_of_folds is None else hours * spec.trials * share_of_folds
    return DeviceForecast(
        device=device,
        fits=fits,
        utilisation=None if utilisation is None else rounded(utilisation),
        measured=measured,
        hours_per_trial=None if hours is None else rounded(hours),
        hours=None if hours is None else rounded(hours * spec.trials),
        hours_pruned=None if pruned is None else rounded(pruned),
    )


def _check_memory(
    spec: StudySpec,
    costs: Sequence[ConfigurationCost],
    devices: Sequence[DeviceForecast],
    required: Sequence[str],
) -> None:
    """Reject a study that does not fit a required device, or does not fit any device."""
    too_small = [device for device in devices if not device.fits]
    rejected = [device for device in too_small if device.device in required]
    if not rejected and len(too_small) < len(devices):
        return
    largest = max(costs, key=lambda cost: cost.memory_gib)
    device = (rejected or too_small)[-1]
    raise InvalidInput(
        f"training.batch_size {spec.training.batch_size} with width {largest.width} and temporal_size "
        f"{largest.temporal_size} takes {largest.memory_gib:.1f} GiB, more than {device.device} has; lower "
        "training.batch_size or width, remove such values from the space, or use a larger device",
        field="training.batch_size",
    )
