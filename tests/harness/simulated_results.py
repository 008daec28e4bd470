"""Results of folds that no network has trained, for tests, the chaos run and benchmarks of the coordinator."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.contracts import EpochResult, FoldAssignment, FoldResult, FoldTask, Provenance
from services.seeds import derive_seed


def make_result(task: FoldTask, predicted: Sequence[int], **provenance: Any) -> FoldResult:
    """One epoch with these predictions, as a worker that ran `task` would send it."""
    even = tuple((0.5, 0.5) for _ in predicted)
    epoch = EpochResult(loss=1.0, predicted=tuple(predicted), probabilities=even)
    return result_of(task, [epoch], **provenance)


def result_of(task: FoldTask, epochs: Iterable[EpochResult], **provenance: Any) -> FoldResult:
    """These epochs with the provenance that `task` asks for; `provenance` replaces single fields of it.

    Where the task has validation clips, an epoch without predictions for them gets the first class.
    """
    first_class = {"validation_predicted": (0,) * len(task.validation_clips)}
    epochs = [e if e.validation_predicted else e.model_copy(update=first_class) for e in epochs]
    given = {
        "device": "cpu",
        "torch": "2",
        "cuda": None,
        "cudnn": None,
        "threads": task.threads or 1,
        "compute": task.compute,
        "memory_format": task.memory_format or "contiguous",
        "revision": None,
        "fingerprint": task.fingerprint,
        "split_hash": task.split_hash,
        "seed": task.seed,
        "seconds": 1.0,
        "clip_passes": 1,
        **provenance,
    }
    return FoldResult(epochs=tuple(epochs), provenance=Provenance.model_validate(given))


def learning_result(task: FoldTask, labels: Mapping[str, int], *, epochs: int = 6) -> FoldResult:
    """A result that could be true: it improves by epoch, with some parameters, and some subjects are hard.

    It follows from the task alone.

    Args:
        labels: true class index of each clip.
    """
    rng = random.Random(derive_seed("made up", task.seed))
    parameters = task.hyperparameters
    skill = 0.62 + 0.12 * parameters.clahe + 0.05 * (parameters.temporal_size == 3)
    skill -= 0.1 * parameters.normalization + 0.25 * max(0.0, parameters.dropout - 0.5)
    skill += random.Random(task.fold_name).uniform(-0.25, 0.12)
    classes = len(task.classes)
    hardness = {clip: random.Random(clip).uniform(-0.25, 0.25) for clip in task.test_clips}
    made = []
    for epoch in range(epochs):
        learnt = skill * (1 - 0.55 ** (epoch + 1))
        predicted, probabilities = [], []
        for clip in task.test_clips:
            sure = min(0.95, max(0.05, learnt + hardness[clip] + rng.gauss(0, 0.08)))
            right = rng.random() < sure
            label = labels[clip] if right else rng.choice([c for c in range(classes) if c != labels[clip]])
            shares = [rng.random() for _ in range(classes)]
            shares[label] = sum(shares) * (0.6 + sure)
            predicted.append(label)
            probabilities.append(tuple(round(share / sum(shares), 6) for share in shares))
        loss = round(1.9 * 0.7**epoch + rng.uniform(0, 0.05), 4)
        made.append(EpochResult(loss=loss, predicted=tuple(predicted), probabilities=tuple(probabilities)))
    return result_of(task, made, device="simulated", seconds=rng.uniform(8, 12), clip_passes=4000)


def random_result(task: FoldTask, rng: random.Random, *, epochs: int = 4) -> FoldResult:
    """Predictions by chance; early stop leaves about four of the paper's 16 epochs."""
    clips, classes = len(task.test_clips), len(task.classes)
    even = tuple((1 / classes,) * classes for _ in range(clips))
    made = (
        EpochResult(
            loss=1.0,
            predicted=tuple(rng.randrange(classes) for _ in range(clips)),
            probabilities=even,
        )
        for _ in range(epochs)
    )
    return result_of(task, made, device="simulated", seconds=0.0, clip_passes=0)


def leased_predictions(assignment: FoldAssignment, *, repeatable: bool = False) -> list[int]:
    """Predictions for a tiny cache, better with larger `temporal_size`; the label is in the clip's name.

    They follow from the lease, so that two attempts at a fold differ; `repeatable` ones follow from the task.
    """
    rng = random.Random(derive_seed("chaos", assignment.seed if repeatable else assignment.lease.id))
    truth = [assignment.classes.index(clip.rpartition("_")[2]) for clip in assignment.test_clips]
    skill = 0.5 + 0.1 * (assignment.hyperparameters.temporal_size // 2)
    return [label if rng.random() < skill else 1 - label for label in truth]
