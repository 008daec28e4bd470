"""A worker that trains nothing; its results could be true: better with some parameters, and with each epoch."""

from __future__ import annotations

import random
import uuid

from client.connection import Connection
from services.contracts import ComputePlan, FoldAssignment, FoldResult, FoldTask, WorkerInfo
from services.seeds import derive_seed
from worker.coordinator_client import CoordinatorClient

EPOCHS = 6


class MadeUpWorker:
    """Claims and reports as real ones do. `labels` has the true label of every clip."""

    def __init__(
        self, url: str, token: str, name: str, study: str, fingerprint: str, labels: dict[str, int]
    ) -> None:
        self._connection = Connection(url, token, give_up_after=60)
        info = WorkerInfo(id=str(uuid.uuid4()), name=name, device="made up")
        self._client = CoordinatorClient(self._connection, info)
        self._study, self._fingerprint, self._labels = study, fingerprint, labels
        self.assignment: FoldAssignment | None = None

    def claim(self) -> FoldAssignment:
        """Hold a fold, waiting for one."""
        while self.assignment is None:
            self.assignment = self._client.claim(
                study=self._study, caches=[self._fingerprint], plans=[ComputePlan()]
            )
        return self.assignment

    def run(self, folds: int) -> None:
        """Run so many folds, and hold the next one where the trial has one."""
        for _ in range(folds):
            assignment = self.claim()
            result = made_up_result(assignment, self._labels)
            self.assignment = self._client.report(assignment.lease, result, more=True).next

    def close(self) -> None:
        """Hang up; what it holds lapses."""
        self._connection.__exit__()


def made_up_result(task: FoldTask, labels: dict[str, int]) -> FoldResult:
    """What follows from the task alone: some subjects are hard, some parameters good."""
    rng = random.Random(derive_seed("made up", task.seed))
    parameters = task.hyperparameters
    skill = 0.62 + 0.12 * parameters.clahe + 0.05 * (parameters.temporal_size == 3)
    skill -= 0.1 * parameters.normalization + 0.25 * max(0.0, parameters.dropout - 0.5)
    skill += random.Random(task.fold_name).uniform(-0.25, 0.12)
    classes = len(task.classes)
    epochs = []
    hardness = {clip: random.Random(clip).uniform(-0.25, 0.25) for clip in task.test_clips}
    for epoch in range(EPOCHS):
        learnt = skill * (1 - 0.55 ** (epoch + 1))
        predicted, probabilities = [], []
        for clip in task.test_clips:
            sure = min(0.95, max(0.05, learnt + hardness[clip] + rng.gauss(0, 0.08)))
            right = rng.random() < sure
            label = labels[clip] if right else rng.choice([c for c in range(classes) if c != labels[clip]])
            rest = [rng.random() for _ in range(classes)]
            rest[label] = sum(rest) * (0.6 + sure)
            predicted.append(label)
            probabilities.append([round(share / sum(rest), 6) for share in rest])
        loss = round(1.9 * 0.7**epoch + rng.uniform(0, 0.05), 4)
        epochs.append({"loss": loss, "predicted": predicted, "probabilities": probabilities})
    seconds = rng.uniform(8, 12)
    return FoldResult.model_validate(
        {
            "epochs": epochs,
            "provenance": {
                "device": "made up",
                "torch": "2",
                "cuda": None,
                "cudnn": None,
                "threads": 1,
                "compute": task.compute,
                "memory_format": "contiguous",
                "revision": None,
                "fingerprint": task.fingerprint,
                "split_hash": task.split_hash,
                "seed": task.seed,
                "seconds": seconds,
                "clip_passes": 4000,
            },
        }
    )
