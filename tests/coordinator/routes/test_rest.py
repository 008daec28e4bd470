"""The REST interface: problems, the long poll, and a study from post to end."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from client.connection import Connection
from client.study_client import StudyClient
from coordinator.runtime import runtime_of
from services.contracts import FoldAssignment
from tests.harness.served_app import ADMIN_TOKEN, WORKER_TOKEN, bearer
from tests.harness.simulated_results import make_result

ADMIN = bearer(ADMIN_TOKEN)
WORKER = bearer(WORKER_TOKEN)
SMALL = {"clahe": [True, False]}


def spec(**given: Any) -> dict[str, Any]:
    return {
        "name": "s",
        "cache": "tiny",
        "trials": 2,
        "pruning": [],
        "training": {"frames": 2, "frame_size": 16},
        **given,
    }


def claim(
    client: httpx.Client, *, wait: float = 0, headers: dict[str, str] = WORKER, key: str | None = None
) -> Any:
    return client.post(
        "/api/v1/claims",
        headers={**headers, "Idempotency-Key": key or str(uuid.uuid4())},
        json={
            "worker": {"id": "worker-one", "name": "one", "device": "cpu"},
            "caches": ["f" * 64],
            "wait_seconds": wait,
        },
    )


def result_of(assignment: dict[str, Any]) -> dict[str, Any]:
    """Every clip taken for the first class, in one epoch."""
    task = FoldAssignment.model_validate(assignment)
    return make_result(task, [0] * len(task.test_clips)).model_dump(mode="json", exclude_unset=True)


def test_many_callers_at_once_wait_for_their_turn(client: httpx.Client) -> None:
    def ask(_: int) -> int:
        return client.get("/api/v1/studies", headers=ADMIN).status_code

    # Far more than the coordinator has threads and connections; each with a connection of its own.
    with ThreadPoolExecutor(100) as callers:
        assert set(callers.map(ask, range(1000))) == {200}


@pytest.mark.parametrize(
    ("changed", "status", "field", "words"),
    [
        ({"space": SMALL, "enqueue": [{"clahe": True}, {"clahe": 1}]}, 422, None, "enqueue.1: clahe = 1"),
        ({"space": SMALL, "enqueue": [{"clahe": True}] * 3}, 422, None, "3 configurations, the study 2"),
        ({"trials": 0}, 422, "trials", "greater than or equal to 1"),
        ({"name": "My Study"}, 422, "name", "pattern"),
        ({"cache": "other"}, 422, "cache", "there are: tiny/ffffffffffff"),
        ({"space": {"activation": ["relu"]}}, 422, "space", "unknown option 'relu' of activation"),
        ({"colour": 1}, 422, "colour", "Extra inputs"),
        ({"training": {"frames": 2, "frame_size": 32}}, 422, "training.frame_size", "the cache tiny"),
        ({"protocol": {"kind": "kfold", "k": 9}}, 422, "protocol", "9 folds need"),
        ({"pruning": [{"rule": "bound", "threshold": 96.5}]}, 422, "pruning.0.bound.threshold", "less than"),
    ],
)
def test_bad_input_is_a_problem_that_names_the_field(
    shared_client: httpx.Client, changed: dict[str, Any], status: int, field: str | None, words: str
) -> None:
    before = shared_client.get("/api/v1/studies", headers=ADMIN).json()
    answer = shared_client.post("/api/v1/studies", headers=ADMIN, json=spec(**changed))
    problem = answer.json()
    assert (answer.status_code, problem["field"]) == (status, field)
    assert words in problem["detail"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert shared_client.get("/api/v1/studies", headers=ADMIN).json() == before


def test_what_is_not_there_is_a_404_that_lists_what_is(client: httpx.Client) -> None:
    assert client.post("/api/v1/studies", headers=ADMIN, json=spec()).status_code == 201
    answer = client.get("/api/v1/studies/other", headers=ADMIN)
    assert answer.status_code == 404
    assert "there are: s" in answer.json()["detail"]
    assert client.get("/api/v1/studies/s/trials/99", headers=ADMIN).status_code == 404


def test_a_name_that_no_study_can_have_is_bad_input_and_not_our_failure(shared_client: httpx.Client) -> None:
    for name in ("%00", "A%20b", "x" * 100):
        assert shared_client.get(f"/api/v1/studies/{name}", headers=ADMIN).status_code == 422


def test_a_cache_whose_arrays_are_cut_off_is_told(
    client: httpx.Client, app: FastAPI, broken_cache_root: Path
) -> None:
    runtime = runtime_of(app)
    settings = replace(runtime.settings, cache_root=broken_cache_root)
    app.state.runtime = replace(runtime, settings=settings)
    answer = client.post("/api/v1/studies", headers=ADMIN, json=spec())
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:foldwise:cache-mismatch")


def test_two_studies_of_one_name_at_the_same_moment_are_one(client: httpx.Client) -> None:
    with ThreadPoolExecutor(4) as pool:
        posts = [
            pool.submit(client.post, "/api/v1/studies", headers=ADMIN, json=spec(start=False)) for _ in range(4)
        ]
        assert sorted(post.result().status_code for post in posts) == [201, 409, 409, 409]


def test_a_claim_waits_for_a_fold_and_gets_the_first_there_is(app: FastAPI, client: httpx.Client) -> None:
    started = time.monotonic()
    assert claim(client, wait=0.6).status_code == 204
    assert time.monotonic() - started >= 0.6
    assert not runtime_of(app).waiting_claims.count, "nothing is kept of what was waited for"
    client.post("/api/v1/studies", headers=ADMIN, json=spec())
    answer = claim(client, wait=20)
    assert answer.status_code == 200
    assert (answer.json()["trial"], answer.json()["fold"]) == (0, 0)


def test_a_claim_delivered_again_takes_nothing_away(client: httpx.Client) -> None:
    key = "delivered-twice-by-the-network"
    assert claim(client, key=key).status_code == 204
    client.post("/api/v1/studies", headers=ADMIN, json=spec())
    assignment = claim(client, wait=20).json()
    assert claim(client, key=key, wait=20).status_code == 409
    lease = assignment["lease"]
    answer = client.put(
        f"/api/v1/leases/{lease['id']}/result",
        headers={**WORKER, "Lease-Term": str(lease["term"]), "Lease-Secret": lease["secret"]},
        json=result_of(assignment),
    )
    assert answer.status_code == 200


def test_a_study_from_post_to_end(client: httpx.Client) -> None:
    posted = client.post("/api/v1/studies", headers=ADMIN, json=spec(start=False))
    assert (posted.status_code, posted.json()["state"]) == (201, "draft")
    assert claim(client).status_code == 204
    client.post("/api/v1/studies/s/start", headers=ADMIN)
    assignment = claim(client, wait=20).json()
    fold_0 = "/api/v1/studies/s/trials/0/folds/0"
    unfinished = client.get(fold_0, headers=ADMIN)
    assert unfinished.status_code == 409
    assert "is leased and has no result" in unfinished.json()["detail"]
    folds = 0
    while assignment:
        lease = assignment["lease"]
        headers = {**WORKER, "Lease-Term": str(lease["term"]), "Lease-Secret": lease["secret"]}
        result = result_of(assignment)
        beat = client.post(
            f"/api/v1/leases/{lease['id']}/heartbeat", headers=headers, json={"epoch": 1, "step": 1}
        )
        assert beat.json()["command"] == "continue"
        verdict = client.put(f"/api/v1/leases/{lease['id']}/result", headers=headers, json=result).json()
        folds += 1
        record = client.get(
            f"/api/v1/studies/s/trials/{assignment['trial']}/folds/{assignment['fold']}", headers=ADMIN
        ).json()
        del assignment["lease"]
        assert record["task"] == assignment
        assert record["result"]["epochs"] == result["epochs"]
        assert record["result"]["provenance"].items() >= result["provenance"].items()
        assert (record["best_epoch"], record["correct"], record["reused_from"]) == (0, 1, None)
        assignment = verdict["next"] or (claim(client, wait=5).json() if folds < 10 else None)
    study = client.get("/api/v1/studies/s", headers=ADMIN).json()
    assert (study["state"], study["folds_done"], study["trials"]["complete"]) == ("complete", 10, 2)
    assert study["best"]["value"] == 0.5
    confusion = client.get("/api/v1/studies/s/trials/0/confusion", headers=ADMIN).json()
    assert confusion["counts"] == [[5, 0], [5, 0]]
    assert (confusion["accuracy"], confusion["uar"]) == (0.5, 0.5)
    shown = client.get("/api/v1/studies/s/trials/1/folds", headers=ADMIN).json()
    assert [fold["name"] for fold in shown] == [f"S{i:03d}" for i in range(5)]
    assert {fold["worker"] for fold in shown} == {"one"}
    missing = client.get(fold_0.replace("folds/0", "folds/5"), headers=ADMIN)
    assert missing.status_code == 404
    assert "its folds are 0 to 4" in missing.json()["detail"]
    with Connection(str(client.base_url), ADMIN_TOKEN, give_up_after=5) as connection:
        assert StudyClient(connection).fold("s", 0, 0).task.fold_name == "S000"
    workers = client.get("/api/v1/workers", headers=ADMIN).json()
    assert [(w["name"], w["fold"]) for w in workers] == [("one", None)]


def test_a_body_that_is_not_finite_or_not_known_is_refused(client: httpx.Client) -> None:
    client.post("/api/v1/studies", headers=ADMIN, json=spec())
    lease = claim(client, wait=20).json()["lease"]
    headers = {**WORKER, "Lease-Term": str(lease["term"]), "Lease-Secret": lease["secret"]}
    path = f"/api/v1/leases/{lease['id']}/heartbeat"
    refused = client.post(path, headers=headers, content=b'{"epoch": 1, "step": 1, "loss": NaN}')
    assert refused.status_code == 422
    assert (
        client.post(path, headers={**headers, "Lease-Secret": "x"}, json={"epoch": 1, "step": 1}).status_code
        == 401
    )
    assert client.post(path, headers=WORKER, json={"epoch": 1, "step": 1}).status_code == 422


@pytest.fixture(scope="module")
def held(shared_client: httpx.Client) -> dict[str, Any]:
    """A fold that a worker holds."""
    shared_client.post("/api/v1/studies", headers=ADMIN, json=spec()).raise_for_status()
    assignment: dict[str, Any] = claim(shared_client, wait=20).json()
    return assignment


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip_passes", 2**31),
        ("clip_passes", -1),
        ("seconds", 1e308),
        ("seconds", -1.0),
        ("device", "a\x00b"),
        ("device", "x" * 200),
        ("torch", "a\x00b"),
        ("cuda", "a\x00b"),
        ("cudnn", "a\x00b"),
        ("revision", "a\x00b"),
    ],
)
def test_a_result_whose_provenance_the_database_could_not_read_or_sum_is_refused(
    shared_client: httpx.Client, held: dict[str, Any], field: str, value: object
) -> None:
    lease = held["lease"]
    headers = {**WORKER, "Lease-Term": str(lease["term"]), "Lease-Secret": lease["secret"]}
    result = result_of(held)
    result["provenance"][field] = value
    refused = shared_client.put(f"/api/v1/leases/{lease['id']}/result", headers=headers, json=result)
    assert (refused.status_code, refused.json()["field"]) == (422, f"provenance.{field}")


def test_a_trial_number_that_no_table_could_hold_is_bad_input(client: httpx.Client) -> None:
    client.post("/api/v1/studies", headers=ADMIN, json=spec())
    refused = client.post("/api/v1/studies/s/final", headers=ADMIN, json={"trial": 2**31})
    assert (refused.status_code, refused.json()["field"]) == (422, "trial")
