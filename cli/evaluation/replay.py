"""Run a stored fold again and compare, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from client.study_client import StudyClient
from services.clip_cache import cache_folder, open_cache
from services.contracts import FoldRecord, FoldResult, Provenance
from worker.training.device import choose_device, keep_freed_memory
from worker.training.fit import Progress, run_fold
from worker.training.pretrained import open_pretrained
from worker.training.training_device import TrainingDevice

PROMISED = ("device", "torch", "cuda", "cudnn", "threads")
"""What must be the same for the same bits; the compute plan and the memory format are taken from the record."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A stored fold beside its replay."""

    equal: bool
    """Every prediction, probability and loss of every epoch is the same."""

    epochs: int
    """Epochs of the stored fold."""

    first_difference: int | None
    """The first epoch, from 1, that is not the same."""

    labels_changed: int
    """Predicted labels that differ, over the epochs that both have."""

    largest_difference: float
    """Of a probability, over the epochs that both have; probabilities are kept to 6 decimals."""

    environment: dict[str, tuple[str, str]]
    """What was different where it ran: name, then stored and here. Without any, the bits are promised."""

    seconds: float


def replay(
    client: StudyClient,
    study: str,
    trial: int,
    fold: int,
    *,
    cache_root: Path,
    models_root: Path,
    device: str | None,
    threads: int | None,
    on_step: Callable[[Progress], None],
) -> tuple[FoldRecord, Comparison]:
    """Fetch a fold with its result and run it here, with the stored plan, memory format and thread count.

    Args:
        client: of the coordinator that has it; only read from.
        study: its name.
        trial: number of the trial.
        fold: index of the fold, from 0.
        cache_root: folder of the clip caches here.
        models_root: the model catalogue here, for a fold that started from a pretrained model.
        device: a torch device; None takes a GPU where there is one.
        threads: CPU threads; None takes the stored number.
        on_step: called after every step.

    Raises:
        NotFound, Conflict: no such fold, or it is not finished.
        CacheMismatch: the fold's clip cache is not here.
        PlanNotSound: this device does not run the fold's compute plan.
    """
    record = client.fold(study, trial, fold)
    task, stored = record.task, record.result.provenance
    chosen = choose_device(device)
    torch.set_num_threads(threads or stored.threads)
    if chosen.type == "cpu":
        keep_freed_memory()
    result = run_fold(
        task,
        open_cache(cache_folder(cache_root, task.dataset, task.fingerprint)),
        TrainingDevice(chosen),
        revision=None,
        on_step=on_step,
        pretrained=None if (name := task.training.pretrained) is None else open_pretrained(models_root, name),
        memory_format=stored.memory_format,
    )
    return record, compare(record.result, result)


def compare(stored: FoldResult, here: FoldResult) -> Comparison:
    """How two results of one fold differ."""
    pairs = list(zip(stored.epochs, here.epochs, strict=False))
    differs = [number for number, (a, b) in enumerate(pairs, start=1) if a != b]
    if len(stored.epochs) != len(here.epochs):
        differs.append(len(pairs) + 1)
    return Comparison(
        equal=not differs and stored.diverged == here.diverged,
        epochs=len(stored.epochs),
        first_difference=min(differs, default=None),
        labels_changed=sum(x != y for a, b in pairs for x, y in zip(a.predicted, b.predicted, strict=True)),
        largest_difference=max(
            (
                abs(p - q)
                for a, b in pairs
                for row, other in zip(a.probabilities, b.probabilities, strict=True)
                for p, q in zip(row, other, strict=True)
            ),
            default=0.0,
        ),
        environment=_differences(stored.provenance, here.provenance),
        seconds=here.provenance.seconds,
    )


def _differences(stored: Provenance, here: Provenance) -> dict[str, tuple[str, str]]:
    return {
        name: (str(getattr(stored, name)), str(getattr(here, name)))
        for name in PROMISED
        if getattr(stored, name) != getattr(here, name)
    }
