"""Every route, called as its OpenAPI description allows and forbids: no failure of ours, no status unsaid."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from coordinator.access.authorization import OPEN_PATHS
from coordinator.app import create_app
from coordinator.settings import CoordinatorSettings
from services.contracts import TokenScope
from tests.harness.served_app import ADMIN_TOKEN, bearer, make_token, served

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@schemathesis.serializer("application/jsonl")
def _lines(_: Any, value: Any) -> bytes:
    return str(value).encode()


@dataclass(frozen=True)
class Service:
    """A running coordinator with a study, a held fold and a token, and their names."""

    client: httpx.Client
    names: dict[str, Any]
    lease: dict[str, str]


@pytest.fixture
def service(settings: CoordinatorSettings) -> Iterator[Service]:
    given_at_start = replace(settings, worker_token=None)
    # A server that is to end lets no claim wait.
    waiting = True
    with served(create_app(given_at_start, ending=lambda: not waiting)) as client:
        spec = {"name": "s", "cache": "tiny", "training": {"frames": 2, "frame_size": 16}}
        client.post("/api/v1/studies", headers=bearer(ADMIN_TOKEN), json=spec).raise_for_status()
        claimed = client.post(
            "/api/v1/claims",
            headers={**bearer(ADMIN_TOKEN), "Idempotency-Key": str(uuid.uuid4())},
            json={"worker": {"id": "worker-one", "name": "one", "device": "cpu"}, "caches": ["f" * 64]},
        )
        assert claimed.status_code == 200
        waiting = False
        lease = claimed.json()["lease"]
        token = make_token(client, TokenScope.READ)
        yield Service(
            client=client,
            names={"name": "s", "number": 0, "index": 0, "lease_id": lease["id"], "token_id": token.id},
            lease={"Lease-Term": str(lease["term"]), "Lease-Secret": lease["secret"]},
        )


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_each_route_answers_as_its_description_says(service: Service, mode: GenerationMode) -> None:
    call_all(service, mode, examples=2)


@pytest.mark.long
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_each_route_answers_so_hundreds_of_times(service: Service, mode: GenerationMode) -> None:
    call_all(service, mode, examples=300)


def test_each_route_tells_a_caller_without_a_token_nothing_else(service: Service) -> None:
    call_all(service, GenerationMode.POSITIVE, examples=1, token=None)


def call_all(service: Service, mode: GenerationMode, *, examples: int, token: str | None = ADMIN_TOKEN) -> None:
    """Call each route so often with made-up names and bodies, and as often with names of what is there."""
    url = str(service.client.base_url)
    description = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=bearer(ADMIN_TOKEN))
    sent = {} if token is None else bearer(token)
    operations = [result.ok() for result in description.get_all_operations() if isinstance(result, Ok)]
    assert len(operations) > 20
    answered: Counter[str] = Counter()
    explore = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    # What ends the study comes last, so that the routes before see it run.
    for operation in sorted(operations, key=lambda op: (op.path.endswith("/stop"), op.method == "delete")):
        names = {p: service.names[p] for p in service.names if f"{{{p}}}" in operation.path}
        lease = service.lease if "{lease_id}" in operation.path else {}
        refused = token is None and operation.path not in OPEN_PATHS
        for path_parameters, headers in ((None, sent), (names, {**sent, **lease})):
            strategy = operation.as_strategy(mode, path_parameters=path_parameters)
            # A route without a parameter or body cannot be called wrongly.
            allowed = (Unsatisfiable,) if mode == GenerationMode.NEGATIVE else ()
            with suppress(*allowed):
                explore(given(case=strategy)(caller(headers, answered, refused=refused)))()
            if not names:
                break
    assert len(answered) > 10


def caller(headers: dict[str, str], answered: Counter[str], *, refused: bool) -> Callable[[Case[Any]], None]:
    def call(case: Case[Any]) -> None:
        answer = case.call_and_validate(headers=headers, checks=CHECKS)
        assert answer.status_code == 401 or not refused
        answered[case.operation.label] += 1

    return call
