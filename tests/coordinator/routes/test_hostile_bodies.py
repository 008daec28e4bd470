"""Bodies that are too large or full of errors cost their sender an answer, and nobody else anything."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import pytest
from pydantic import ValidationError

from coordinator.routes import body_limits, typed_bodies
from services.contracts import ClaimRequest, Contract, Enqueue, FoldResult, StudySpec
from services.errors import InvalidInput
from tests.harness.served_app import ADMIN_TOKEN, bearer

OF_ROUTE = {
    "/api/v1/leases/{lease_id}/result": body_limits.RESULT_BYTES,
    "/api/v1/studies": body_limits.SPEC_BYTES,
    "/api/v1/studies/{name}/clone": body_limits.SPEC_BYTES,
    "/api/v1/studies/{name}/enqueue": body_limits.SPEC_BYTES,
    "/api/v1/studies/import": body_limits.IMPORT_BYTES,
}

MANY = 10_000


def test_every_route_has_its_limit(shared_client: httpx.Client) -> None:
    api = shared_client.get("/openapi.json", headers=bearer(ADMIN_TOKEN)).json()
    tried = 0
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            limit = OF_ROUTE.get(path, body_limits.DEFAULT_BYTES)
            if "requestBody" not in operation or limit == body_limits.IMPORT_BYTES:
                continue
            url = path.replace("{name}", "s").replace("{lease_id}", "l").replace("{worker}", "w")
            headers = {
                **bearer(ADMIN_TOKEN),
                "Content-Type": "application/json",
                "Origin": str(shared_client.base_url),
            }
            for size, large in ((limit, False), (limit + 1, True)):
                answer = shared_client.request(method, url, content=b" " * size, headers=headers)
                assert (answer.status_code == 413) == large, (method, path, size, answer.status_code)
            tried += 1
    assert tried >= 9


PROVENANCE = {
    "device": "cpu",
    "torch": "2",
    "cuda": None,
    "cudnn": None,
    "threads": 1,
    "compute": {"precision": "fp32", "compiled": False},
    "memory_format": "contiguous",
    "revision": None,
    "fingerprint": "f",
    "split_hash": "s",
    "seed": 1,
    "seconds": 1,
    "clip_passes": 1.0,
}

WRONG = {
    "numbers": ('{"epochs":[1,1]}', "epochs.0"),
    "texts": ('{"epochs":["a"]}', "epochs.0"),
    "lists": ('{"epochs":[[],[]]}', "epochs.0"),
    "objects": ('{"epochs":[{},{}]}', "epochs.0"),
    "predictions": ('{"epochs":[{"loss":0,"predicted":[[]],"probabilities":[]}]}', "epochs.0.predicted.0"),
    "probabilities": (
        '{"epochs":[{"loss":0,"predicted":[0],"probabilities":[0]}]}',
        "epochs.0.probabilities.0",
    ),
    "unknown": ('{"epochs":[],"other":[[],[]]}', None),
    "provenance": ('{"epochs":[],"provenance":{"device":[[],[]]}}', "provenance.device"),
    "malformed": ('{"epochs":[NaN', None),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_result_of_another_shape_is_refused_before_it_becomes_objects(
    shared_client: httpx.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, field = WRONG[name]
    headers = {
        "Lease-Term": "1",
        "Lease-Secret": "s",
        "Content-Type": "application/json",
        **bearer(ADMIN_TOKEN),
    }
    parsed: list[bytes] = []
    monkeypatch.setattr("starlette.requests.json.loads", parsed.append)
    answer = shared_client.put("/api/v1/leases/l/result", content=body, headers=headers)
    monkeypatch.undo()
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text
    assert parsed == []


def test_whole_numbers_may_be_written_as_fractions_and_null_stands_for_nothing() -> None:
    decoder = msgspec.json.Decoder(typed_bodies._shape(FoldResult))
    epoch = {"loss": None, "predicted": [0, 1.0], "probabilities": [[1, 0.5]]}
    result = {"epochs": [epoch], "diverged": False, "model": None, "provenance": PROVENANCE}
    typed_bodies._check(decoder, json.dumps(result).encode())
    with pytest.raises(InvalidInput, match=r"epochs\.0\.loss"):
        typed_bodies._check(decoder, json.dumps({**result, "epochs": [{**epoch, "loss": "0"}]}).encode())


@pytest.mark.parametrize(
    ("contract", "given"),
    [
        (ClaimRequest, {"worker": {"id": "w", "name": "w", "device": "cpu"}, "caches": [1] * 1000}),
        (FoldResult, {"epochs": [{}] * 1000}),
        (FoldResult, {"epochs": [{"loss": 0, "predicted": [[]] * MANY, "probabilities": []}]}),
        (FoldResult, {"epochs": [{"loss": 0, "predicted": [0], "probabilities": [[]] * 3 + ["x"] * MANY}]}),
        (FoldResult, {"epochs": [{"loss": 0, "predicted": [0], "probabilities": [["x"] * MANY]}]}),
        (StudySpec, {"name": "s", "cache": "c", "enqueue": [1] * MANY}),
        (Enqueue, {"configurations": [1] * 1000}),
    ],
)
def test_a_list_is_checked_up_to_its_first_error(contract: type[Contract], given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        contract.model_validate(given)
    assert caught.value.error_count() < 10
