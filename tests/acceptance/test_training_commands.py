"""Replay, pretraining and compute plans as a person uses them: real processes on one machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preprocessing.clips import ClipSettings
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.job import preprocess
from tests.acceptance.up import Up, foldwise
from tests.harness.fold_tasks import write_cache


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache root with two datasets of three subjects: faces and moving shapes, 10 frames of 16 x 16."""
    root = tmp_path_factory.mktemp("faces")
    write_ckplus_tree(root / "tree", subjects=3, seed=1)
    preprocess("ckplus", root / "tree", root / "caches", settings=ClipSettings(frame_size=16), processes=1)
    write_cache(root / "caches", subjects=3, clips_of_class=2, size=16)
    return root / "caches"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, caches: Path) -> Path:
    folder = tmp_path_factory.mktemp("up") / "state"
    folder.mkdir()
    (folder / "caches").symlink_to(caches)
    return folder


@pytest.fixture(scope="module")
def up(state: Path) -> Iterator[Up]:
    """One `up` with a worker for all tests of this file; each has its own studies."""
    with Up(state, workers=1) as up:
        yield up


def settings(dataset: str) -> list[str]:
    return [
        f"cache={dataset}",
        "trials=1",
        "training.frame_size=16",
        "training.augmentation={}",
        "training.batch_size=10",
        "training.learning_rate=0.001",
        "protocol={kind: kfold, k: 3}",
        "space={dropout: [0.25]}",
    ]


REUSED = """
    SELECT r.reused_from IS NOT NULL, count(*) FROM foldwise.results r
    JOIN foldwise.trials t ON t.id = r.trial_id JOIN foldwise.studies s ON s.id = t.study_id
    WHERE s.name = 'stored' GROUP BY 1
"""


@pytest.mark.long
def test_a_stored_fold_is_replayed_bit_for_bit(up: Up, state: Path) -> None:
    # Two trials with equal parameters: the second is counted without a worker.
    up.create("stored", *settings("ckplus"), "trials=2", "economies.stop_when_perfect=false")
    study = up.wait_until_over("stored")
    assert study["trials"]["complete"] == 2
    assert dict(up.query(REUSED)) == {False: 3, True: 3}

    replayed = foldwise("replay", "stored", "1", "2", "--state", str(state), "--json")
    assert replayed.returncode == 0, replayed.stderr
    found = json.loads(replayed.stdout)
    assert found["equal"]
    assert (found["first_difference"], found["labels_changed"], found["environment"]) == (None, 0, {})
    assert "the replay is bit-identical" in replayed.stderr
    log = up.log("worker-1")
    assert "no_gpu" in log
    assert "host_memory=" in log

    # Another seed in the record is another fold.
    up.execute(
        "UPDATE foldwise.studies SET spec = jsonb_set(spec::jsonb, '{seed}', '9')::json WHERE name = 'stored'"
    )
    differs = foldwise("replay", "stored", "0", "0", "--state", str(state))
    assert differs.returncode == 1
    assert "the replay differs from epoch 1 on" in differs.stdout


@pytest.mark.long
def test_a_study_starts_from_a_model_of_another_dataset(up: Up, state: Path) -> None:
    here = ["--state", str(state)]
    flags = [f"--set={word}" for word in (*settings("blobs"), "training.width=2", "training.epochs=2")]
    made = foldwise("pretrain", "--name", "other", "--preset", "ckplus-loso", *flags, *here, "--json")
    assert made.returncode == 0, made.stderr
    card: dict[str, Any] = json.loads(made.stdout)
    assert (card["dataset"], card["clips"]) == ("blobs", 18)
    assert f"--set training.pretrained={card['id']}" in made.stderr

    up.create("from-model", *settings("ckplus"), f"training.pretrained={card['id']}")
    assert up.wait_until_over("from-model")["trials"]["complete"] == 1
    assert foldwise("replay", "from-model", "0", "1", *here).returncode == 0

    for name, dataset, model, words in (
        ("same-set", "blobs", card["id"], "was trained on blobs, the set this study tests on"),
        ("no-model", "ckplus", "nothing-000000000000", f"there are: {card['id']}"),
    ):
        refused = [f"--set={word}" for word in (*settings(dataset), f"training.pretrained={model}")]
        answer = foldwise("study", "create", "--preset", "ckplus-loso", "--name", name, *refused, *here)
        assert answer.returncode == 2
        assert words in answer.stderr


@pytest.mark.long
def test_a_study_in_a_plan_no_worker_has_waits_and_says_so(up: Up, caches: Path) -> None:
    up.create("tf32", *settings("ckplus"), "compute.precision=tf32")
    up.create("plain", *settings("ckplus"))
    assert up.wait_until_over("plain")["trials"]["complete"] == 1
    assert up.show("tf32")["folds_done"] == 0
    assert up.query("SELECT count(*) FROM foldwise.leases WHERE outcome <> 'done'") == [(0,)]
    service = up.service()
    worker = foldwise(
        *("worker", "--url", service["url"], "--cache-root", str(caches), "--study", "tf32"),
        FOLDWISE_TOKEN=service["worker_token"],
    )
    assert worker.returncode == 69
    assert "tf32" in worker.stderr
