"""How fast a device trains a study's configurations: measured here, or read from folds that workers ran."""

from __future__ import annotations

import os
from collections import defaultdict
from statistics import median

from cli.forecast.dataset_shape import DatasetShape
from cli.forecast.plan import ConfigurationCost, Measured, Plan, useful_flops, usual_configuration
from client.study_client import StudyClient
from services.contracts import FoldState, FoldTask, StudySpec, configure
from services.errors import Conflict, InvalidInput
from services.model_config import ModelConfig
from worker.training.device import choose_device, device_name, free_memory, keep_freed_memory
from worker.training.speed import measure_speed
from worker.training.training_device import TrainingDevice

CALIBRATION_SECONDS = 60.0

FOLDS_READ = 20
"""Finished folds of a study that are looked at, at most."""


def measure_here(spec: StudySpec, shape: DatasetShape, plan: Plan, *, device: str | None) -> Measured:
    """Train the cheapest, the usual and the dearest configuration for a minute in all.

    Args:
        spec: the study.
        shape: its dataset.
        plan: of it, not measured.
        device: a torch device; None takes a GPU where there is one.

    Raises:
        InvalidInput: no such device, or the study does not fit its memory.
        PlanNotSound: the device does not run the study's compute plan soundly.
    """
    chosen = choose_device(device)
    memory = _memory_of_host() if chosen.type == "cpu" else free_memory(chosen)
    largest = max(plan.configurations, key=lambda cost: cost.memory_gib)
    if memory is not None and largest.memory_gib * 2**30 > memory:
        raise InvalidInput(
            f"width {largest.width}, temporal_size {largest.temporal_size} in batches of "
            f"training.batch_size {spec.training.batch_size} take {largest.memory_gib:.1f} GiB, this device "
            f"has {memory / 2**30:.1f} free; lower training.batch_size or width, or calibrate on a larger "
            "device",
            field="training.batch_size",
        )
    if chosen.type == "cpu":
        keep_freed_memory()
    training_device = TrainingDevice(chosen)
    costs = sorted(plan.configurations, key=lambda cost: cost.useful_flop_per_clip)
    usual = next(cost for cost in costs if plan.configuration.items() <= vars(cost).items())
    measured = {}
    for cost in {id(cost): cost for cost in (costs[0], usual, costs[-1])}.values():
        task = _task(spec, shape, cost)
        speed = measure_speed(task, training_device, channels=shape.channels, seconds=CALIBRATION_SECONDS / 3)
        measured[cost.useful_flop_per_clip] = speed.clips_per_second
    return Measured(device=device_name(chosen), memory=memory, clips_per_second=measured)


def measured_by_workers(client: StudyClient, study: str) -> Measured:
    """The speed of the folds that a study's workers have run last, on the device that ran most of them.

    What a worker does once for many folds, such as drawing the augmented clips, is in the time of some.

    Raises:
        NotFound: there is no such study.
        Conflict: it has no finished fold.
    """
    view = client.get(study)
    channels = next((d.channels for d in client.datasets() if d.fingerprint == view.fingerprint), 1)
    seconds: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    read = 0
    for trial in reversed(client.trials(study)):
        for fold in client.folds(study, trial.number):
            if fold.state != FoldState.DONE or fold.reused_from is not None or read == FOLDS_READ:
                continue
            read += 1
            record = client.fold(study, trial.number, fold.index)
            ran = record.result.provenance
            flops = useful_flops(ModelConfig.of_task(record.task), view.spec, channels)
            seconds[ran.device][flops].append(ran.seconds / ran.clip_passes)
    if not seconds:
        raise Conflict(
            f"study {study} has no finished fold yet; its workers have measured nothing", field="study"
        )
    device = max(seconds, key=lambda name: sum(map(len, seconds[name].values())))
    return Measured(
        device=device,
        memory=None,
        clips_per_second={flops: 1 / median(taken) for flops, taken in seconds[device].items()},
    )


def _task(spec: StudySpec, shape: DatasetShape, cost: ConfigurationCost) -> FoldTask:
    costly = {name: getattr(cost, name) for name in ("temporal_size", "second_conv_layer", "width", "epochs")}
    hyperparameters, training = configure({**usual_configuration(spec), **costly}, spec.training)
    return FoldTask(
        study=spec.name,
        trial=0,
        fold=0,
        fold_name="calibration",
        folds=1,
        hyperparameters=hyperparameters,
        training=training,
        economies=spec.economies,
        compute=spec.compute,
        dataset=shape.name,
        fingerprint="",
        classes=shape.classes,
        test_clips=(),
        split_hash="",
        seed=0,
        study_seed=spec.seed,
    )


def _memory_of_host() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
