"""The study that benchmarks of the coordinator run: its clip cache, its spec, and a long history of trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from tests.harness.tiny_cache import write_tiny_cache

CLASSES = ("anger", "happy", "fear")
FINGERPRINT = "b" * 64
DATASET = "bench"


def write_cache(root: Path, *, subjects: int) -> None:
    """Write a cache with one tiny clip of each class for each subject."""
    write_tiny_cache(
        root, dataset=DATASET, subjects=subjects, classes=CLASSES, frames=1, fingerprint=FINGERPRINT
    )


def study_spec(name: str, **spec: Any) -> dict[str, Any]:
    """The JSON body that creates a study on that cache, with the paper's space and median pruning."""
    return {
        "name": name,
        "cache": DATASET,
        "training": {"frames": 1, "frame_size": 16},
        "pruning": [{"rule": "median"}],
        **spec,
    }


def write_trials(
    engine: Engine, study_id: int, *, first: int, trials: int, folds_done: int, folds: int, state: str
) -> None:
    """Insert trials as if they had run, with results in their first `folds_done` folds and the others pending.

    The number of correct clips in a fold is random, and so is the value of a complete trial.

    Args:
        engine: the coordinator's database.
        study_id: id of the study.
        first: number of the first trial.
        trials: number of trials.
        folds_done: number of finished folds in each trial.
        folds: number of folds of a trial.
        state: state of the trials.
    """
    parameters = {
        "study": study_id,
        "first": first,
        "last": first + trials - 1,
        "done": folds_done,
        "folds": folds,
        "state": state,
        "clips": len(CLASSES),
    }
    with engine.begin() as connection:
        for statement in _HISTORY:
            connection.execute(text(statement), parameters)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


_HISTORY = (
    "INSERT INTO foldwise.workers (id, name, device) VALUES ('made-up', 'made-up', 'none')"
    " ON CONFLICT DO NOTHING",
    "INSERT INTO foldwise.trials (study_id, number, parameters, parameters_hash, state, value, completed)"
    " SELECT :study, n, json_build_object('dropout', round((n / 1e5)::numeric, 4)), 'made-up-' || n, :state,"
    " CASE WHEN :state = 'complete' THEN random() END, CASE WHEN :state = 'complete' THEN n + 1 END"
    " FROM generate_series(CAST(:first AS integer), :last) AS n",
    "INSERT INTO foldwise.folds (trial_id, fold, state, term)"
    " SELECT trials.id, fold, CASE WHEN fold < :done THEN 'done' ELSE 'pending' END,"
    " CASE WHEN fold < :done THEN 1 ELSE 0 END"
    " FROM foldwise.trials, generate_series(0, CAST(:folds AS integer) - 1) AS fold"
    " WHERE study_id = :study AND number BETWEEN :first AND :last",
    "INSERT INTO foldwise.leases (id, trial_id, fold, term, secret, worker_id, expires_at, outcome, ended_at)"
    " SELECT 'made-up-' || trials.id || '-' || fold, trials.id, fold, 1, 'none', 'made-up',"
    " clock_timestamp(), 'done', clock_timestamp()"
    " FROM foldwise.trials, generate_series(0, CAST(:done AS integer) - 1) AS fold"
    " WHERE study_id = :study AND number BETWEEN :first AND :last",
    "INSERT INTO foldwise.results"
    " (trial_id, fold, lease_id, sha256, payload, best_epoch, correct, clips, confusion, verdict)"
    " SELECT trials.id, fold, 'made-up-' || trials.id || '-' || fold, 'none',"
    """ '{"epochs": [], "provenance": {"seconds": 0}}', 0, floor(random() * (:clips + 1)), :clips,"""
    " '[[1, 0, 0], [0, 1, 0], [0, 0, 1]]', '{}'"
    " FROM foldwise.trials, generate_series(0, CAST(:done AS integer) - 1) AS fold"
    " WHERE study_id = :study AND number BETWEEN :first AND :last",
)
