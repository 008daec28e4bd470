"""How long a study takes on each device: from peak rates of GPUs, or from a measured speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cli.forecast.costs import StudyCosts, rounded
from cli.forecast.gpus import DEFAULT_GPUS, Gpu, find_gpus, gpu_of_device, gpu_of_this_machine
from services.contracts import Precision, StudySpec
from services.errors import InvalidInput
from worker.training.clips import MAX_CLIPS_SHARE, MAX_HOST_SHARE

ASSUMED_UTILISATION = 0.4
"""Share of a GPU's peak rate that we assume if nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class DeviceForecast:
    """How long the study takes on one device in one precision."""

    device: str
    precision: Precision
    fits: bool
    """Whether every configuration of the study fits the device's memory."""

    memory_gib: float
    """GiB that the largest one takes on this device, without clips that do not fit beside it."""

    kernels: bool
    """Whether the torch that is installed here has kernels for the device; without, there are no hours."""

    utilisation: float | None
    """Useful operations per second divided by the peak rate; None if the peak rate is unknown."""

    measured: bool
    """Whether the utilisation was measured (True) or assumed (False)."""

    hours_per_trial: float | None
    """Mean over the trials; None if the device does not support the study's precision."""

    hours: float | None
    """The whole study, if every fold runs."""

    hours_pruned: float | None
    """The whole study with its pruning rules; None if their effect cannot be forecast."""


@dataclass(frozen=True, kw_only=True)
class MeasuredSpeed:
    """How fast a device trains configurations of the space."""

    device: str
    precision: Precision
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
    costs: StudyCosts,
    share_of_folds: float | None,
    gpus: Sequence[str],
    measured: MeasuredSpeed | None,
) -> list[DeviceForecast]:
    """Forecast the hours of a study on each device.

    Args:
        spec: the study.
        costs: costs of its trials.
        share_of_folds: share of folds that run with the study's pruning rules (0 to 1); None if unknown.
        gpus: names of GPUs; an empty sequence means the default ones.
        measured: a measured device, which is listed first. If it is a known GPU, its utilisation also holds for
            the other GPUs in its precision; that of a slice holds for slices of its size only.

    Returns:
        The measured device, this machine's GPU unless some are named, the GPUs in their order with a forecast
        for each precision, and at the end those that torch here has no kernels for.

    Raises:
        InvalidInput: the study does not fit the memory of a named GPU, of the measured device, or of any
            default GPU.
        NotFound: a GPU is unknown.
    """
    named = find_gpus(gpus)
    devices = [] if measured is None else [_measured(spec, costs, share_of_folds, measured)]
    measured_gpu = None if measured is None else gpu_of_device(measured.device)
    architectures = torch.cuda.get_arch_list()
    useful_flops = costs.mean(lambda cost: cost.clip_passes_per_trial * cost.useful_flop_per_clip)
    for gpu in named or _usual_gpus():
        kernels = gpu.runs_kernels_of(architectures)
        for precision in gpu.precisions(spec.compute) or [_only(spec)]:
            used, known = ASSUMED_UTILISATION, False
            # A network that fills a slice may leave most of a whole GPU idle.
            same = measured_gpu is not None and measured_gpu.share == gpu.share
            if same and devices[0].precision == precision and devices[0].utilisation is not None:
                used, known = devices[0].utilisation, True
            peak = gpu.peak(precision)
            devices.append(
                _forecast(
                    spec,
                    gpu.name,
                    precision,
                    costs.largest_gib(gpu.memory),
                    gpu.memory,
                    used,
                    known,
                    None if peak is None or not kernels else useful_flops / peak / used,
                    share_of_folds,
                    kernels=kernels,
                )
            )
    devices.sort(key=lambda device: not device.kernels)
    required = [gpu.name for gpu in named] + ([] if measured is None else [measured.device])
    _check_memory(spec, costs, devices, required)
    return devices


def _measured(
    spec: StudySpec, costs: StudyCosts, share_of_folds: float | None, measured: MeasuredSpeed
) -> DeviceForecast:
    gpu = gpu_of_device(measured.device)
    peak = None if gpu is None else gpu.peak(measured.precision)
    memory = float("inf") if measured.memory is None else measured.memory / 2**30
    return _forecast(
        spec,
        measured.device,
        measured.precision,
        costs.largest_gib(memory, clips_share=clips_share(measured.device)),
        memory,
        None if peak is None else measured.operations_per_second() / peak,
        True,
        costs.mean(
            lambda cost: cost.clip_passes_per_trial * measured.seconds_per_clip(cost.useful_flop_per_clip)
        ),
        share_of_folds,
    )


def clips_share(device: str) -> float:
    """Share of a device's memory (0 to 1) up to which a worker keeps a clip set there."""
    return MAX_HOST_SHARE if device == "cpu" else MAX_CLIPS_SHARE


def _usual_gpus() -> list[Gpu]:
    usual = find_gpus(DEFAULT_GPUS)
    here = gpu_of_this_machine()
    return usual if here is None else [here, *(gpu for gpu in usual if gpu.name != here.name)]


def _only(spec: StudySpec) -> Precision:
    # Of a GPU that has none of the study's precisions: what the study asks for, without hours.
    return "fp32" if spec.compute.precision == "auto" else spec.compute.precision


def _forecast(
    spec: StudySpec,
    device: str,
    precision: Precision,
    needed_gib: float,
    memory_gib: float,
    utilisation: float | None,
    measured: bool,
    seconds_per_trial: float | None,
    share_of_folds: float | None,
    *,
    kernels: bool = True,
) -> DeviceForecast:
    hours = None if seconds_per_trial is None else seconds_per_trial / 3600
    pruned = None if hours is None or share_of_folds is None else hours * spec.trials * share_of_folds
    return DeviceForecast(
        device=device,
        precision=precision,
        fits=needed_gib <= memory_gib,
        memory_gib=rounded(needed_gib),
        kernels=kernels,
        utilisation=None if utilisation is None or not kernels else rounded(utilisation),
        measured=measured and kernels,
        hours_per_trial=None if hours is None else rounded(hours),
        hours=None if hours is None else rounded(hours * spec.trials),
        hours_pruned=None if pruned is None else rounded(pruned),
    )


def _check_memory(
    spec: StudySpec, costs: StudyCosts, devices: Sequence[DeviceForecast], required: Sequence[str]
) -> None:
    """Reject a study that does not fit a required device, or any device that has kernels."""
    rejected = [device for device in devices if not device.fits and device.device in required]
    usable = [device for device in devices if device.kernels]
    if not rejected and (not usable or any(device.fits for device in usable)):
        return
    largest, device = costs.largest, (rejected or usable)[-1]
    raise InvalidInput(
        f"training.batch_size {spec.training.batch_size} with width {largest.width} and temporal_size "
        f"{largest.temporal_size} takes {device.memory_gib:.1f} GiB, more than {device.device} has; lower "
        "training.batch_size or width, remove such values from the space, or use a larger device",
        field="training.batch_size",
    )
