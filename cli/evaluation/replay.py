"""`foldwise replay`: run a recorded fold again and compare the results bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client.study_client import StudyClient
from services.clip_cache import cache_folder, open_cache
from services.contracts import EpochResult, FoldRecord, FoldResult, Provenance
from worker.training.device import choose_device, keep_freed_memory
from worker.training.fit import Progress, run_fold
from worker.training.pretrained import open_pretrained
from worker.training.training_device import TrainingDevice

REQUIRED_EQUAL = ("device", "torch", "cuda", "cudnn", "threads")
"""Fields of the provenance that must be equal for bit-identical results. A replay takes the compute plan and
the memory format from the record."""


@dataclass(frozen=True, kw_only=True)
class ReplayComparison:
    """How a replay differs from the recorded fold."""

    equal: bool
    """Whether all predictions, probabilities and losses of all epochs are bit-identical."""

    epochs: int
    """Number of epochs of the recorded fold."""

    first_difference: int | None
    """The first epoch that differs, from 1; None if all are equal."""

    labels_changed: int
    """Number of predicted labels that differ, over the epochs that both have."""

    largest_difference: float
    """Largest difference of a probability, over the epochs that both have; probabilities have 6 decimals."""

    environment: dict[str, tuple[str, str]]
    """Environment fields that differ: name, recorded and current value. If none do, all bits must match."""

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
) -> tuple[FoldRecord, ReplayComparison]:
    """Fetch a recorded fold and run it here, with its compute plan, memory format and number of threads.

    Args:
        client: a client of the coordinator that has the fold.
        study: name of the study.
        trial: number of the trial.
        fold: index of the fold, from 0.
        cache_root: folder of the clip caches.
        models_root: folder of the model catalogue, for a fold that started from a pretrained model.
        device: a torch device; None means a GPU if there is one.
        threads: CPU threads; None means the recorded number.
        on_step: called after every training step.

    Raises:
        NotFound, Conflict: there is no such fold, or it is not finished.
        CacheMismatch: the fold's clip cache is not in `cache_root`.
        PlanNotSound: this device fails the soundness check of the fold's compute plan.
    """
    record = client.fold(study, trial, fold)
    task, recorded = record.task, record.result.provenance
    chosen = choose_device(device)
    # What the study's plan leaves open is taken from the record.
    task = task.model_copy(
        update={"memory_format": recorded.memory_format, "threads": threads or max(1, recorded.threads)}
    )
    if chosen.type == "cpu":
        keep_freed_memory()
    result = run_fold(
        task,
        open_cache(cache_folder(cache_root, task.dataset, task.fingerprint)),
        TrainingDevice(chosen),
        revision=None,
        on_step=on_step,
        pretrained=None if (name := task.training.pretrained) is None else open_pretrained(models_root, name),
    )
    return record, compare(record.result, result, plan_is_frozen=record.task.memory_format is not None)


def compare(recorded: FoldResult, replayed: FoldResult, *, plan_is_frozen: bool = True) -> ReplayComparison:
    """Compare two results of the same fold.

    Args:
        recorded: what the coordinator has.
        replayed: what was computed now.
        plan_is_frozen: whether the study froze its plan. Versions that did not computed folds in channels_last
            with other roundings.
    """
    pairs = list(zip(recorded.epochs, replayed.epochs, strict=False))
    different = [number for number, (a, b) in enumerate(pairs, start=1) if a != b]
    if len(recorded.epochs) != len(replayed.epochs):
        different.append(len(pairs) + 1)
    return ReplayComparison(
        equal=not different and recorded.diverged == replayed.diverged,
        epochs=len(recorded.epochs),
        first_difference=min(different, default=None),
        labels_changed=sum(x != y for a, b in pairs for x, y in zip(_labels(a), _labels(b), strict=True)),
        largest_difference=max(
            (
                abs(p - q)
                for a, b in pairs
                for row, other in zip(a.probabilities, b.probabilities, strict=True)
                for p, q in zip(row, other, strict=True)
            ),
            default=0.0,
        ),
        environment=_differences(recorded.provenance, replayed.provenance, plan_is_frozen=plan_is_frozen),
        seconds=replayed.provenance.seconds,
    )


def _labels(epoch: EpochResult) -> tuple[int, ...]:
    return (*epoch.predicted, *epoch.validation_predicted)


def _differences(
    recorded: Provenance, replayed: Provenance, *, plan_is_frozen: bool
) -> dict[str, tuple[str, str]]:
    differences = {
        name: (str(getattr(recorded, name)), str(getattr(replayed, name)))
        for name in REQUIRED_EQUAL
        if getattr(recorded, name) != getattr(replayed, name)
    }
    if not plan_is_frozen and recorded.memory_format == "channels_last":
        differences["arithmetic"] = ("of a version before frozen plans", "of this version")
    return differences
