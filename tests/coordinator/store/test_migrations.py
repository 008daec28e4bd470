"""The schema that migrations make is the schema the code declares, and what was stored stays readable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from coordinator.optimizer import create_tables
from coordinator.store import views
from coordinator.store.database import migrate
from coordinator.store.revisions import alembic_config
from coordinator.store.studies import get_study
from coordinator.store.tables import SCHEMA
from services.contracts import ComputePlan, StudyPlan, TrialState
from services.seeds import fold_seed, sha256_of
from tests.harness.coordinator_harness import Harness
from tests.harness.tiny_cache import FINGERPRINT

SPEC_0001: dict[str, Any] = {
    "name": "s",
    "cache": "tiny",
    "protocol": {"kind": "kfold", "k": 2},
    "space": {"temporal_size": [3, 1], "dropout": {"low": 0.0, "high": 1.0, "log": False}, "clahe": [True]},
    "trials": 2,
    "seed": 7,
    "sampler": {
        "kind": "tpe",
        "startup_trials": 10,
        "candidates": 24,
        "multivariate": True,
        "constant_liar": True,
    },
    "pruning": [],
    "training": {
        "width": 64,
        "batch_size": 30,
        "learning_rate": 0.0001,
        "epochs": 16,
        "bn_momentum": 0.1,
        "frames": 2,
        "frame_size": 16,
        "augmentation": {
            "counts": {"happy": {"flip": 1, "rotation": 0, "contrast": 0}},
            "rotation_degrees": 30.0,
            "contrast_low": 0.22,
            "contrast_high": 2.2,
            "border": "black",
        },
        "stop_when_perfect": False,
    },
    "compute": {"precision": "fp32", "compiled": False},
    "start": True,
}
PARAMETERS = {"temporal_size": 3, "dropout": 0.0, "clahe": True}
PAYLOAD_0001 = {
    "epochs": [{"loss": 0.5, "predicted": [0, 1], "probabilities": [[0.6, 0.4], [0.1, 0.9]]}],
    "diverged": False,
    "provenance": {
        "device": "cpu",
        "torch": "2",
        "cuda": None,
        "cudnn": None,
        "threads": 1,
        "revision": None,
        "seconds": 0.5,
        "clip_passes": 8,
    },
}
ROWS_0001 = """
    INSERT INTO foldwise.studies
        (name, state, spec, dataset, fingerprint, classes, clips, fold_count, split_hash)
        VALUES ('s', 'running', :spec, 'tiny', :fingerprint, '["anger", "happy"]', 4, 2, 'split');
    INSERT INTO foldwise.study_folds (study_id, fold, name, clip_ids, labels)
        VALUES (1, 0, 'fold 1 of 2', '["a", "b"]', '[0, 1]'), (1, 1, 'fold 2 of 2', '["c", "d"]', '[0, 1]');
    INSERT INTO foldwise.trials (study_id, number, parameters, state)
        VALUES (1, 0, :parameters, 'running'), (1, 1, :parameters, 'ready');
    INSERT INTO foldwise.folds (trial_id, fold, state, term)
        VALUES (1, 0, 'done', 1), (1, 1, 'pending', 0), (2, 0, 'pending', 0), (2, 1, 'pending', 0);
    INSERT INTO foldwise.workers (id, name, device) VALUES ('worker-w0', 'w0', 'cpu');
    INSERT INTO foldwise.leases (id, trial_id, fold, term, secret, worker_id, expires_at, outcome)
        VALUES ('lease', 1, 0, 1, 'secret', 'worker-w0', now(), 'done');
    INSERT INTO foldwise.results
        (trial_id, fold, lease_id, sha256, payload, best_epoch, correct, clips, confusion, verdict)
        VALUES (1, 0, 'lease', 'old', :payload, 0, 2, 2, '[[1, 0], [0, 1]]', '{}')
"""


@pytest.fixture
def at_0001(engine: Engine) -> Engine:
    """A database of the first revision, with a study, two equal trials, and a result of one of them."""
    with engine.connect() as connection:
        connection.execute(text("DROP SCHEMA foldwise CASCADE"))
        connection.execute(text("CREATE SCHEMA foldwise"))
        connection.commit()
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        values = {"spec": SPEC_0001, "parameters": PARAMETERS, "payload": PAYLOAD_0001}
        given = {"fingerprint": FINGERPRINT} | {name: json.dumps(value) for name, value in values.items()}
        for statement in ROWS_0001.split(";\n"):
            connection.execute(text(statement), given)
        connection.commit()
    return engine


def test_migrations_leave_nothing_to_change_even_beside_optunas_tables(engine: Engine) -> None:
    create_tables(engine)
    with engine.connect() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.check(config)


def test_migrating_again_changes_nothing(engine: Engine) -> None:
    migrate(engine)
    tables = inspect(engine).get_table_names(schema=SCHEMA)
    assert {"studies", "trials", "folds", "leases", "results", "outbox", "schema_version"} <= set(tables)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM foldwise.schema_version")) == 1


def test_a_study_of_the_first_revision_is_read_and_goes_on(at_0001: Engine, cache_root: Path) -> None:
    migrate(at_0001)
    harness = Harness(at_0001, cache_root)
    spec = harness.study().spec
    assert not spec.economies.stop_when_perfect
    assert spec.feedback_delay is None
    assert [name for name, _ in spec.space.items()] == ["temporal_size", "dropout", "clahe"]
    assert harness.study().fold_order is None
    assert not harness.trial(0).learnt_order
    # It has results, whose memory format and threads the workers chose.
    assert harness.study().plan == StudyPlan()
    with at_0001.connect() as connection:
        kept = connection.execute(text("SELECT spec FROM foldwise.studies")).scalar_one()
        assert [key for key in kept if key != "economies"] == list(SPEC_0001)
        hashes = connection.scalars(text("SELECT parameters_hash FROM foldwise.trials")).all()
        assert hashes == [sha256_of(PARAMETERS)] * 2

    with harness.sessions.begin() as session:
        study = get_study(session, "s")
        record = views.fold_record(session, study, views.get_trial(session, study, 0), 0)
    told = record.result.provenance
    assert told.seed == record.task.seed
    assert told.seed == fold_seed(study_seed=7, parameters=PARAMETERS, fold=0, fingerprint=FINGERPRINT)
    assert (told.fingerprint, told.split_hash, told.compute) == (FINGERPRINT, "split", ComputePlan())
    assert (told.seconds, record.correct) == (0.5, 2)
    assert record.task.validation_clips == ()

    assert (harness.must_claim("w1").trial, harness.must_claim("w2").fold) == (0, 1)
    assert [fold.reused_from for fold in harness.folds(1)] == [0, None]
    assert harness.trial(1).state == TrialState.RUNNING


def test_a_result_has_one_origin(at_0001: Engine) -> None:
    migrate(at_0001)
    for origin in (
        "lease_id = NULL",
        "reused_from = 1",
        "lease_id = NULL, reused_from = 2",
        "imported = true",
        "lease_id = NULL, reused_from = 1, imported = true",
    ):
        with pytest.raises(IntegrityError), at_0001.begin() as connection:
            connection.execute(text(f"UPDATE foldwise.results SET {origin}"))  # noqa: S608


def test_a_stored_number_without_bounds_gets_todays_bound(at_0001: Engine, cache_root: Path) -> None:
    with at_0001.begin() as connection:
        spec = {
            **SPEC_0001,
            "study_seconds": 1e300,
            "trial_seconds": 2.0,
            "sampler": {**SPEC_0001["sampler"], "candidates": 10**12},
            "pruning": [{"rule": "median", "startup_trials": 2**70, "warmup_folds": 10**9}],
        }
        connection.execute(text("UPDATE foldwise.studies SET spec = :spec"), {"spec": json.dumps(spec)})
    migrate(at_0001)
    read = Harness(at_0001, cache_root).study().spec
    assert (read.study_seconds, read.trial_seconds) == (1e9, 2.0)
    assert read.sampler.model_dump()["candidates"] == 10_000
    assert read.pruning[0].model_dump()["startup_trials"] == 100_000
    assert read.pruning[0].model_dump()["warmup_folds"] == 100_000
