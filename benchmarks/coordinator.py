"""What a fold costs the coordinator, against Optuna doing the same on the same PostgreSQL.

    python -m benchmarks.coordinator [--trials 40] [--folds 10]

Ours: `PUT /leases/{id}/result` over HTTP: check, store, decide by median, lease the next fold. Baseline:
Optuna's own `trial.report` and `trial.should_prune` with its MedianPruner, in process. Both on one PostgreSQL,
one trial of each in turn, so that a change of the machine's speed hits both. Results are made up.

The last line is JSON: `report_ms` and `optuna_report_ms` (median), `report_vs_optuna` (their ratio, below 1 is
faster), `report_p95_ms`, `ask_ms` of Optuna (ours asks ahead, off the request path), `folds`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
from rich.console import Console
from rich.table import Table

from cli.local import LocalService, local_service
from cli.state import StateFolder
from coordinator.optimizer import distributions
from services.clip_cache import CacheRecord, CacheWriter
from services.contracts import (
    ComputePlan,
    EpochResult,
    FoldAssignment,
    FoldResult,
    MedianRule,
    Provenance,
    StudySpec,
    WorkerInfo,
)
from services.folds import KFold
from worker.coordinator_client import Connection, CoordinatorClient

CLASSES = ("anger", "happy", "fear")
FINGERPRINT = "b" * 64


def main() -> None:
    """Run both in turn and print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--folds", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        state = StateFolder(Path(folder) / "state")
        _write_cache(state.caches, subjects=arguments.folds)
        with local_service(state, workers=0, port=0, say=lambda _: None) as service:
            _measure(service, trials=arguments.trials, folds=arguments.folds)


def _measure(service: LocalService, *, trials: int, folds: int) -> None:
    spec = StudySpec.model_validate(
        {
            "name": "bench",
            "cache": "bench",
            "trials": trials,
            "protocol": KFold(k=folds),
            "pruning": [MedianRule()],
            "training": {"frames": 1, "frame_size": 16},
        }
    )
    service.client.create(spec)
    baseline = optuna.create_study(
        storage=optuna.storages.RDBStorage(service.service.database_url),
        study_name="baseline",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3),
    )
    ours: list[float] = []
    theirs: list[float] = []
    asks: list[float] = []
    running = _our_trials(service, ours)
    while next(running, None) is not None:
        _optuna_trial(baseline, spec, folds, theirs, asks)
    table = Table("", "median ms", "95 % below", "calls")
    for name, times in (
        ("report + decide + next fold (HTTP)", ours),
        ("Optuna report + should_prune", theirs),
        ("Optuna ask", asks),
    ):
        row = (f"{1e3 * statistics.median(times):.2f}", f"{1e3 * _p95(times):.2f}", str(len(times)))
        table.add_row(name, *row)
    Console().print(table)
    print(
        json.dumps(
            {
                "report_ms": round(1e3 * statistics.median(ours), 3),
                "optuna_report_ms": round(1e3 * statistics.median(theirs), 3),
                "report_vs_optuna": round(statistics.median(ours) / statistics.median(theirs), 3),
                "report_p95_ms": round(1e3 * _p95(ours), 3),
                "ask_ms": round(1e3 * statistics.median(asks), 3),
                "folds": len(ours),
            }
        )
    )


def _our_trials(service: LocalService, times: list[float]) -> Iterator[int]:
    """Run folds as a worker would; yields after each trial."""
    rng = random.Random(0)
    worker = WorkerInfo(id=str(uuid.uuid4()), name="bench", device="none")
    with Connection(service.service.url, service.service.worker_token, give_up_after=30) as connection:
        client = CoordinatorClient(connection, worker)
        assignment: FoldAssignment | None = None
        while True:
            if assignment is None:
                if service.client.get("bench").state.over:
                    return
                assignment = client.claim(study=None, caches=[FINGERPRINT], plans=[ComputePlan()])
                continue
            result = _made_up(assignment, rng)
            started = time.perf_counter()
            verdict = client.report(assignment.lease, result, more=True)
            times.append(time.perf_counter() - started)
            ended = verdict.decision != "continue"
            number, assignment = assignment.trial, verdict.next
            if ended:
                yield number


def _optuna_trial(
    study: optuna.Study, spec: StudySpec, folds: int, times: list[float], asks: list[float]
) -> None:
    rng = random.Random(len(times))
    started = time.perf_counter()
    trial = study.ask(distributions(spec.space))
    asks.append(time.perf_counter() - started)
    accuracy = 0.0
    for step in range(1, folds + 1):
        accuracy += (rng.random() - accuracy) / step
        started = time.perf_counter()
        trial.report(accuracy, step)
        pruned = trial.should_prune()
        times.append(time.perf_counter() - started)
        if pruned and step < folds:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return
    study.tell(trial, accuracy)


def _made_up(assignment: FoldAssignment, rng: random.Random) -> FoldResult:
    clips = len(assignment.test_clips)
    epochs = [
        EpochResult(
            loss=1.0,
            predicted=tuple(rng.randrange(len(CLASSES)) for _ in range(clips)),
            probabilities=tuple((0.2, 0.3, 0.5) for _ in range(clips)),
        )
        for _ in range(assignment.training.epochs)
    ]
    provenance = Provenance(
        device="none",
        torch="none",
        cuda=None,
        cudnn=None,
        threads=1,
        compute=assignment.compute,
        memory_format="contiguous",
        revision=None,
        fingerprint=assignment.fingerprint,
        split_hash=assignment.split_hash,
        seed=assignment.seed,
        seconds=0.0,
        clip_passes=0,
    )
    return FoldResult(epochs=tuple(epochs), provenance=provenance)


def _write_cache(root: Path, *, subjects: int) -> None:
    writer = CacheWriter(root, "bench", FINGERPRINT)
    frames = np.zeros((1, 16, 16), dtype=np.uint8)
    clip_ids = []
    for subject in range(subjects):
        for label in CLASSES:
            clip_ids.append(f"S{subject:03d}_{label}")
            record = CacheRecord(
                clip_id=clip_ids[-1],
                subject=f"S{subject:03d}",
                label=label,
                source="none",
                frames=("none",),
                detector="none",
                boxes=(None,),
                confidences=(None,),
                repeated=0,
                flags=(),
            )
            writer.add(record, frames, frames)
    writer.finish(clip_ids=clip_ids, classes=CLASSES, settings={}, tools={}, skipped={}, warnings=())


def _p95(times: list[float]) -> float:
    return sorted(times)[int(0.95 * (len(times) - 1))]


if __name__ == "__main__":
    main()
