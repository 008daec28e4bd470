"""Bodies of every size and shape to every route, while somebody asks whether the process is alive."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from coordinator.routes import body_limits
from tests.coordinator.routes.test_hostile_bodies import OF_ROUTE
from tests.harness.served_app import ADMIN_TOKEN, bearer
from tests.harness.stopwatch import livez_seconds

PROBE_SECONDS = 5.0
"""Seconds that Kubernetes gives the liveness probe of the chart."""

ITEMS: dict[str, Callable[[random.Random], str]] = {
    "numbers": lambda rng: str(rng.randrange(1000)),
    "fractions": lambda rng: repr(rng.random()),
    "huge numbers": lambda rng: "9" * rng.randrange(1, 400),
    "texts": lambda rng: json.dumps("x" * rng.randrange(50)),
    "lists": lambda rng: "[]",
    "objects": lambda rng: "{}",
    "nested lists": lambda rng: "[" * 200 + "]" * 200,
    "broken": lambda rng: rng.choice(["NaN", "nul", '"\\ud800"', "[", "\x00"]),
}


def body(shape: str, size: int, rng: random.Random, names: list[str]) -> bytes:
    """An object of about this size whose fields have the names of a contract and lists of one kind of item."""
    parts = []
    per_field = max(1, size // max(1, len(names)))
    for name in names:
        item = ITEMS[shape](rng)
        parts.append(f"{json.dumps(name)}:[{','.join([item] * (per_field // (len(item) + 1)))}]")
    return ("{" + ",".join(parts) + "}").encode("utf-8", "surrogatepass")[:size]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2))
def test_no_body_is_an_error_of_ours_and_the_process_stays_alive(client: httpx.Client, seed: int) -> None:
    rng = random.Random(seed)
    api = client.get("/openapi.json", headers=bearer(ADMIN_TOKEN)).json()
    schemas = api["components"]["schemas"]
    requests = []
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is None:
                continue
            name = content["schema"].get("$ref", "").rpartition("/")[2]
            names = [*schemas.get(name, {}).get("properties", {"x": None}), "other"]
            limit = OF_ROUTE.get(path, body_limits.DEFAULT_BYTES)
            url = path.replace("{name}", "s").replace("{lease_id}", "l").replace("{worker}", "w")
            for shape in ITEMS:
                for size in (0, 1, 1000, limit // 3, limit, limit + 1):
                    requests.append(
                        (method, url, body(shape, size, rng, rng.sample(names, min(3, len(names)))))
                    )
    rng.shuffle(requests)

    def send(request: tuple[str, str, bytes]) -> tuple[int, str]:
        method, url, content = request
        headers = {
            **bearer(ADMIN_TOKEN),
            "Content-Type": "application/json",
            "Idempotency-Key": str(uuid.uuid4()),
            "Lease-Term": "1",
            "Lease-Secret": "s",
        }
        answer = httpx.request(
            method, f"{client.base_url}{url}", content=content, headers=headers, timeout=300, trust_env=False
        )
        return answer.status_code, f"{method} {url} {content[:80]!r}: {answer.text[:200]}"

    with (
        livez_seconds(str(client.base_url).rstrip("/"), pause=0.05, timeout=10 * PROBE_SECONDS) as times,
        ThreadPoolExecutor(4) as callers,
    ):
        for status, what in callers.map(send, requests):
            assert 400 <= status < 500, what
    assert len(times) > 10
    assert max(times) < PROBE_SECONDS
