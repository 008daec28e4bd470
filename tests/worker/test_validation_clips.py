"""Validation clips over HTTP: a real worker tests them, and one that would train on them gets no such fold."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.evaluation.replay import replay
from client.connection import Connection
from client.study_client import StudyClient
from services.contracts.protocol import PROTOCOL_HEADER
from services.errors import EXIT_DONE, EXIT_PERMANENT
from tests.harness.served_app import ADMIN_TOKEN, WORKER_TOKEN, bearer
from tests.harness.tiny_cache import FINGERPRINT
from tests.worker.conftest import LiveCoordinator
from tests.worker.test_loop import make_worker
from worker import coordinator_client

pytestmark = pytest.mark.usefixtures("workers_in_this_process")

KNOWS_NONE = {PROTOCOL_HEADER: "1"}
"""Header of a worker from before validation clips."""


def test_a_worker_tests_validation_clips_after_every_epoch_and_a_replay_has_the_same_bits(
    coordinator: LiveCoordinator, cache_root: Path, tmp_path: Path
) -> None:
    coordinator.create_study(epochs=2, epoch_choice="validation")
    split = coordinator.query(
        "SELECT clip_ids, validation_clip_ids, validation_labels FROM foldwise.study_folds"
    )
    assert [(len(tested), len(validated)) for tested, validated, _ in split] == [(6, 2), (4, 2)]
    for tested, validated, labels in split:
        assert not {clip[:4] for clip in validated} & {clip[:4] for clip in tested}
        assert labels == [["anger", "happy"].index(clip[5:]) for clip in validated]
    seen = coordinator.call("GET", "/studies/s/split")["folds"]
    assert [[clip["clip_id"] for clip in fold["validation"]] for fold in seen] == [row[1] for row in split]
    assert {clip["subject"] for clip in seen[0]["validation"]} == {split[0][1][0][:4]}
    assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_DONE
    epochs = coordinator.query("SELECT json_array_elements(payload -> 'epochs') FROM foldwise.results")
    assert [len(epoch["validation_predicted"]) for (epoch,) in epochs] == [2] * 4
    with StudyClient(Connection(coordinator.url, ADMIN_TOKEN, give_up_after=0)) as client:
        record, compared = replay(
            client,
            "s",
            0,
            0,
            cache_root=cache_root,
            models_root=tmp_path,
            device="cpu",
            threads=None,
            on_step=lambda _: None,
        )
    assert list(record.task.validation_clips) == split[0][1]
    assert compared.equal


def test_a_result_without_validation_clips_is_stored_as_before(
    coordinator: LiveCoordinator, cache_root: Path
) -> None:
    coordinator.create_study()
    assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_DONE
    epochs = coordinator.query("SELECT json_array_elements(payload -> 'epochs') FROM foldwise.results")
    assert [sorted(epoch) for (epoch,) in epochs] == [["loss", "predicted", "probabilities"]] * 2


def test_an_older_worker_gets_only_folds_without_validation_clips(
    coordinator: LiveCoordinator, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator.create_study(epoch_choice="validation", priority=1)
    coordinator.create_study(name="t")
    monkeypatch.setattr(coordinator_client, "_VERSION", KNOWS_NONE)
    assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_PERMANENT
    assert coordinator.outcomes() == []
    headers = {**bearer(WORKER_TOKEN), **KNOWS_NONE, "Idempotency-Key": "k" * 16, "Foldwise-Threads": "1"}
    claim = {
        "worker": {"id": "worker-x", "name": "x", "device": "cpu"},
        "caches": [FINGERPRINT],
        "wait_seconds": 5,
    }
    first = coordinator.http.post("/api/v1/claims", headers=headers, json=claim)
    assert first.json()["study"] == "t"
    named = coordinator.http.post(
        "/api/v1/claims", headers={**headers, "Idempotency-Key": "l" * 16}, json={**claim, "study": "s"}
    )
    assert (
        "study s has validation clips or a dataset's own split, which workers know from version 2"
        in named.json()["detail"]
    )
    monkeypatch.undo()
    assert make_worker(coordinator.url, cache_root, study="s").run() == EXIT_DONE
