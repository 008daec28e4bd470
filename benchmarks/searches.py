"""Searches in which every fold of every trial ran, to replay them with pruning.

Simulated searches (`coordinator.pruning.replay.simulated_trials`) have the shape of CK+: 118 subjects with 327
clips, and the published number of subjects with 1 to 6 clips. In a rising search the skill grows by 1 from the
first to the last trial.

Recorded searches are files in `recorded_searches`, written by `python -m benchmarks.pruning --record STUDY`: a
line of JSON that describes the study, then CSV.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from cli.forecast.dataset_shape import CKPLUS_SUBJECTS
from client.study_client import StudyClient
from coordinator.pruning.replay import simulated_trials
from services.contracts import FoldState, TrialState
from services.errors import Conflict
from services.folds import KFold, LeaveOneSubjectOut, Protocol, SplitProtocol

RECORDED = Path(__file__).parent / "recorded_searches"
_COLUMNS = ("trial", "fold", "correct", "clips")
_PROTOCOL: TypeAdapter[SplitProtocol] = TypeAdapter(Protocol)


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search without pruning."""

    name: str
    protocol: SplitProtocol
    trials: Sequence[Sequence[tuple[int, int]]]
    """For each trial, (correct, clips) of every fold, in order of the fold index."""


def simulate(name: str, *, folds: int | None, rise: float, trials: int, seed: int) -> Search:
    """Simulate a search; the same arguments give the same numbers.

    Args:
        name: name of the search.
        folds: number of subject-independent folds; None means Leave-One-Subject-Out.
        rise: growth of the skill from the first to the last trial.
        trials: number of trials.
        seed: seed of the dataset and of the trials.
    """
    clips = np.repeat(list(CKPLUS_SUBJECTS), list(CKPLUS_SUBJECTS.values()))
    rng = np.random.default_rng(seed)
    rng.shuffle(clips)
    fold_of = np.arange(len(clips)) % (folds or len(clips))
    return Search(
        name=name,
        protocol=LeaveOneSubjectOut() if folds is None else KFold(k=folds),
        trials=simulated_trials(clips.tolist(), fold_of.tolist(), trials=trials, rng=rng, rise=rise),
    )


def shuffled(search: Search, seed: int) -> Search:
    """The same trials in another order."""
    order = np.random.default_rng(seed).permutation(len(search.trials))
    return Search(
        name=search.name, protocol=search.protocol, trials=[search.trials[number] for number in order]
    )


def read_search(path: Path) -> Search:
    """Read a recorded search."""
    with path.open(encoding="utf-8", newline="") as file:
        about = json.loads(file.readline())
        trials: dict[int, list[tuple[int, int]]] = {}
        for row in csv.DictReader(file):
            trials.setdefault(int(row["trial"]), []).append((int(row["correct"]), int(row["clips"])))
    return Search(
        name=f"recorded: {path.stem}",
        protocol=_PROTOCOL.validate_python(about["protocol"]),
        trials=list(trials.values()),
    )


def record_search(client: StudyClient, study: str, path: Path) -> Search:
    """Write the folds of a study to a file.

    Args:
        client: a client with the scope read.
        study: name of the study.
        path: file to write.

    Raises:
        Conflict: a trial of the study has not run all its folds.
        NotFound: there is no such study.
    """
    view = client.get(study)
    about: dict[str, Any] = {
        "study": view.name,
        "protocol": view.spec.protocol.model_dump(),
        "dataset": view.dataset,
        "fingerprint": view.fingerprint,
        "split_hash": view.split_hash,
        "training": view.spec.training.model_dump(exclude_defaults=True),
    }
    rows = []
    for trial in client.trials(study):
        if trial.state != TrialState.COMPLETE:
            raise Conflict(
                f"trial {trial.number} of study {study} is {trial.state}; record a complete study without "
                "pruning"
            )
        folds = client.folds(study, trial.number)
        rows += [
            (trial.number, fold.index, fold.correct, fold.clips)
            for fold in folds
            if fold.state == FoldState.DONE
        ]
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(json.dumps(about) + "\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        table.writerows(rows)
    return read_search(path)
