"""How fast a device trains a study's configurations: measured here, or read from folds that workers ran."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import median

from cli.forecast.costs import COST_PARAMETERS, ConfigurationCost, useful_flops, usual_configuration
from cli.forecast.dataset_shape import DatasetShape
from cli.forecast.devices import MeasuredSpeed, clips_share
from cli.forecast.forecast import Forecast
from client.study_client import StudyClient
from services.compute_plans import default_threads
from services.contracts import (
    ComputeSettings,
    FoldState,
    FoldTask,
    Precision,
    StudyPlan,
    StudySpec,
    configure,
)
from services.errors import Conflict, InvalidInput
from services.model_config import ModelConfig
from services.search_space import ParameterValue
from services.usable_cores import usable_cores
from worker.training.device import (
    choose_device,
    device_name,
    device_with_memory,
    free_memory,
    keep_freed_memory,
    ran_out_of_memory,
)
from worker.training.host_memory import available_memory
from worker.training.speed import measure_speed
from worker.training.training_device import TrainingDevice

CALIBRATION_SECONDS = 60.0
"""Seconds to measure, divided among the configurations."""

GLANCE_SECONDS = 2.0
GLANCE_WIDTHS = (64, 32, 16, 8, 4)
GLANCE_FLOPS = 3e9
"""Operations per clip that a CPU does in a fraction of a second."""

MAX_FOLDS_READ = 20
"""Maximum number of finished folds of a study to read."""


def measure_device(
    spec: StudySpec, shape: DatasetShape, forecast: Forecast, *, device: str | None
) -> MeasuredSpeed:
    """Train the cheapest, the usual and the most expensive configuration on this device, for a minute in total.

    Args:
        spec: the study.
        shape: its dataset.
        forecast: its forecast, which lists the configurations.
        device: a torch device; None means a GPU if there is one.

    Raises:
        InvalidInput: there is no such device, or the study does not fit its memory.
        PlanNotSound: the device fails the soundness check of the study's compute plan.
    """
    chosen = choose_device(device)
    memory = available_memory() if chosen.type == "cpu" else free_memory(chosen)
    study = forecast.costs()
    if memory is not None:
        needed = study.largest_gib(memory / 2**30, clips_share=clips_share(chosen.type))
        if needed * 2**30 > memory:
            reason = f"takes {needed:.1f} GiB, but this device has only {memory / 2**30:.1f} GiB free"
            raise _too_large(spec, study.largest, reason)
    if chosen.type == "cpu":
        keep_freed_memory()
    training_device = TrainingDevice(chosen, threads=default_threads(usable_cores()))
    plan = training_device.choose_plan(spec.compute)
    costs = sorted(study.configurations, key=lambda cost: cost.useful_flop_per_clip)
    usual = next(cost for cost in costs if forecast.configuration.items() <= vars(cost).items())
    measured = {}
    for cost in {id(cost): cost for cost in (costs[0], usual, costs[-1])}.values():
        task = _task(spec, shape, {name: getattr(cost, name) for name in COST_PARAMETERS}, plan)
        try:
            speed = measure_speed(
                task, training_device, channels=shape.channels, seconds=CALIBRATION_SECONDS / 3
            )
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            reason = f"does not fit the memory of {device_with_memory(chosen)}"
            raise _too_large(spec, cost, reason) from error
        measured[cost.useful_flop_per_clip] = speed.clips_per_second
    return MeasuredSpeed(
        device=device_name(chosen), precision=plan.precision, memory=memory, clips_per_second=measured
    )


def glance_at_cpu(spec: StudySpec, shape: DatasetShape) -> MeasuredSpeed:
    """Train a network of the study for a few seconds on this machine's CPU.

    The network is as wide as it can be with `GLANCE_FLOPS` operations per clip. The speed of others is taken to
    be in proportion to their operations; wider ones are faster than that.

    Args:
        spec: the study.
        shape: its dataset.
    """
    keep_freed_memory()
    training_device = TrainingDevice(choose_device("cpu"), threads=default_threads(usable_cores()))
    plan = training_device.choose_plan(ComputeSettings())
    for width in GLANCE_WIDTHS:
        training = spec.training.model_copy(update={"width": width})
        task = _task(spec.model_copy(update={"training": training}), shape, {}, plan)
        flops = useful_flops(ModelConfig.of_task(task), spec, shape.channels)
        if flops <= GLANCE_FLOPS:
            break
    speed = measure_speed(task, training_device, channels=shape.channels, seconds=GLANCE_SECONDS)
    return MeasuredSpeed(
        device="cpu",
        precision=plan.precision,
        memory=available_memory(),
        clips_per_second={flops: speed.clips_per_second},
    )


def speed_of_workers(client: StudyClient, study: str) -> MeasuredSpeed:
    """Read the speed of the last folds that a study's workers ran, on the device that ran most of them.

    Work that a worker does once for several folds, such as drawing the augmented clips, adds to the time of
    the fold that it was done in.

    Raises:
        NotFound: there is no such study.
        Conflict: the study has no finished fold.
    """
    view = client.get(study)
    channels = next((d.channels for d in client.datasets() if d.fingerprint == view.fingerprint), 1)
    # A study computes all its folds in one precision.
    precision: Precision = "fp32"
    seconds: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    read = 0
    for trial in reversed(client.trials(study)):
        for fold in client.folds(study, trial.number):
            if fold.state != FoldState.DONE or fold.reused_from is not None or read == MAX_FOLDS_READ:
                continue
            read += 1
            record = client.fold(study, trial.number, fold.index)
            provenance = record.result.provenance
            precision = provenance.compute.precision
            flops = useful_flops(ModelConfig.of_task(record.task), view.spec, channels)
            seconds[provenance.device][flops].append(provenance.seconds / provenance.clip_passes)
    if not seconds:
        raise Conflict(
            f"study {study} has no finished fold yet, so the speed of its workers is unknown", field="study"
        )
    device = max(seconds, key=lambda name: sum(map(len, seconds[name].values())))
    return MeasuredSpeed(
        device=device,
        precision=precision,
        memory=None,
        clips_per_second={flops: 1 / median(taken) for flops, taken in seconds[device].items()},
    )


def _task(
    spec: StudySpec, shape: DatasetShape, parameters: Mapping[str, ParameterValue], plan: StudyPlan
) -> FoldTask:
    hyperparameters, training = configure({**usual_configuration(spec), **parameters}, spec.training)
    return FoldTask(
        study=spec.name,
        trial=0,
        fold=0,
        fold_name="calibration",
        folds=1,
        hyperparameters=hyperparameters,
        training=training,
        economies=spec.economies,
        compute=plan.compute,
        memory_format=plan.memory_format,
        threads=plan.threads,
        dataset=shape.name,
        fingerprint="",
        classes=shape.classes,
        test_clips=(),
        split_hash="",
        seed=0,
        study_seed=spec.seed,
    )


def _too_large(spec: StudySpec, cost: ConfigurationCost, reason: str) -> InvalidInput:
    return InvalidInput(
        f"training.batch_size {spec.training.batch_size} with width {cost.width} and temporal_size "
        f"{cost.temporal_size} {reason}; lower training.batch_size or width, or use a larger device",
        field="training.batch_size",
    )
