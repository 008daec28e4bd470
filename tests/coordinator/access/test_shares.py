"""One caller takes no more than its share: of looks for folds, of exports, of large bodies."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from starlette.types import Message, Receive, Scope, Send

from coordinator.access import connections, exports, large_bodies, waiting_claims
from coordinator.access.authentication import Caller
from coordinator.access.large_bodies import LargeBodies
from coordinator.access.waiting_claims import LOOKS_PER_SECOND, WaitingClaims
from coordinator.runtime import runtime_of
from services.contracts import TokenScope
from services.errors import TooManyRequests
from tests.harness.coordinator_harness import Harness, wait_until
from tests.harness.served_app import ADMIN_TOKEN, WORKER_TOKEN, bearer, make_token
from tests.harness.tiny_cache import FINGERPRINT


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_many_kinds_of_one_caller_share_its_looks_and_others_keep_theirs() -> None:
    clock = Clock()
    waiting = WaitingClaims(clock=clock)
    looks = {"many": 0, "one": 0}
    with ExitStack() as claims:
        for kind in range(300):
            claims.enter_context(waiting.joined("many", kind))
        claims.enter_context(waiting.joined("one", "k"))
        for _ in range(1000):
            clock.now += 0.1
            looks["many"] += sum(waiting.may_look("many", kind) for kind in range(300))
            looks["one"] += waiting.may_look("one", "k")
    assert looks["many"] <= 1.1 * (300 + 100 * LOOKS_PER_SECOND)
    assert looks["many"] > 100 * LOOKS_PER_SECOND / 2
    assert looks["one"] > 450
    assert waiting.count == 0


def test_claims_of_one_kind_look_once_and_again_when_one_of_them_got_a_fold() -> None:
    clock = Clock()
    waiting = WaitingClaims(clock=clock)
    with waiting.joined("c", "k"):
        with waiting.joined("c", "k"):
            assert waiting.may_look("c", "k")
            assert not waiting.may_look("c", "k")
        assert waiting.may_look("c", "k")


def test_a_caller_has_a_maximum_of_waiting_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_claims, "MAX_WAITING", 2)
    waiting = WaitingClaims()
    with waiting.joined("c", 1), waiting.joined("c", 2):
        with (
            pytest.raises(TooManyRequests, match="2 claims of this token wait already"),
            waiting.joined("c", 3),
        ):
            pass
        with waiting.joined("other", 3):
            assert waiting.count == 3


@pytest.fixture
def large_study(client: httpx.Client, harness: Harness) -> str:
    """A study whose export is larger than what sockets hold on their way."""
    harness.create(name="large", trials=1, start=False)
    with harness.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO foldwise.enqueued (study_id, number, parameters)"
                " SELECT studies.id, number, json_build_object('x', repeat('x', 10000))"
                " FROM foldwise.studies, generate_series(0, 3000) AS number"
            )
        )
    return "large"


def send(client: httpx.Client, request: bytes) -> socket.socket:
    assert client.base_url.port is not None
    connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=30)
    connection.sendall(request)
    return connection


def export_of(token: str) -> bytes:
    head = f"GET /api/v1/studies/large/export HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\r\n"
    return head.encode()


@pytest.fixture
def readers(client: httpx.Client) -> list[str]:
    return [make_token(client, TokenScope.READ, f"r{number}").token for number in range(3)]


def test_readers_that_do_not_read_block_nobody_else(
    client: httpx.Client, app: FastAPI, large_study: str, readers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "CHUNK_SECONDS", 1.0)
    with ExitStack() as open_connections:
        for token in readers[:2]:
            open_connections.enter_context(send(client, export_of(token)))
        wait_until(lambda: len(runtime_of(app).exports.callers) == 2)
        # The same token has its share, and another one waits until a slot is free.
        again = client.get("/api/v1/studies/large/export", headers=bearer(readers[0]))
        assert (again.status_code, again.headers["retry-after"]) == (429, "10")
        assert client.get("/api/v1/studies/large/export", headers=bearer(readers[2])).status_code == 200
    wait_until(lambda: not runtime_of(app).exports.callers)


def test_few_large_bodies_are_in_memory_at_once_and_one_caller_has_a_share() -> None:
    inside: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["state"]["caller"].name
        inside[name] += 1
        most[name] = max(most[name], inside[name])
        most["all"] = max(most["all"], inside.total())
        await asyncio.sleep(0.01)
        inside[name] -= 1

    async def never() -> Message:
        raise AssertionError("nothing is received or sent here")

    async def ask(bodies: LargeBodies, caller: str, size: int) -> None:
        scope = {
            "type": "http",
            "path": "/",
            "headers": [(b"content-length", str(size).encode())],
            "state": {"caller": Caller(name=caller, scope=TokenScope.WORKER)},
        }
        await bodies(scope, never, lambda _: never())  # type: ignore[arg-type,return-value]

    async def ask_all(size: int) -> LargeBodies:
        bodies = LargeBodies(app, streamed=())
        await asyncio.gather(*(ask(bodies, caller, size) for caller in ("a", "b") for _ in range(50)))
        return bodies

    bodies = asyncio.run(ask_all(large_bodies.LARGE_BYTES + 1))
    assert most == {"a": large_bodies.MAX_OF_CALLER, "b": most["b"], "all": large_bodies.MAX_LARGE}
    assert not bodies._of_caller, "nothing is kept of callers that are gone"
    most.clear()
    asyncio.run(ask_all(1000))
    assert most["all"] == 100


def test_large_bodies_that_stop_half_way_block_nobody_else(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_bodies, "RECEIVE_SECONDS", 1.0)
    monkeypatch.setattr(connections, "BODY_SECONDS", 1e6)
    size = 8 * 2**20
    head = (
        f"PUT /api/v1/leases/l/result HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {WORKER_TOKEN}\r\n"
        f"Lease-Term: 1\r\nLease-Secret: s\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size}\r\n\r\n{{"
    )
    headers = {"Lease-Term": "1", "Lease-Secret": "s", "Content-Type": "application/json"}
    with ExitStack() as open_connections:
        for _ in range(2 * large_bodies.MAX_LARGE):
            open_connections.enter_context(send(client, head.encode()))
        for token in (ADMIN_TOKEN, WORKER_TOKEN):
            answer = client.put(
                "/api/v1/leases/l/result", content=b" " * size, headers={**headers, **bearer(token)}
            )
            assert answer.status_code == 422


def test_a_claim_that_need_not_wait_gets_its_fold(
    client: httpx.Client, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_claims, "MAX_WAITING", 0)
    harness.create(name="s")
    headers = {**bearer(WORKER_TOKEN), "Idempotency-Key": "k" * 16}
    body = {"worker": {"id": "worker-w", "name": "w", "device": "cpu"}, "caches": [FINGERPRINT]}
    assert client.post("/api/v1/claims", json=body, headers=headers).status_code == 200
    headers["Idempotency-Key"] = "l" * 16
    body["caches"] = []
    answer = client.post("/api/v1/claims", json=body, headers=headers)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")


def test_an_export_whose_reader_disconnects_ends_in_a_thread_and_gives_its_turn_back(
    client: httpx.Client, app: FastAPI, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.create(name="large", start=False)
    closed: list[str] = []

    def lines(*_: object) -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 100_000
        finally:
            try:
                asyncio.get_running_loop()
                closed.append("on the event loop")
            except RuntimeError:
                closed.append("in a thread")

    monkeypatch.setattr("coordinator.routes.study_life.export_lines", lines)
    with send(client, export_of(ADMIN_TOKEN)) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    wait_until(lambda: not runtime_of(app).exports.callers)
    assert closed == ["in a thread"]


def test_a_token_has_one_import_at_a_time(client: httpx.Client, app: FastAPI) -> None:
    head = (
        f"POST /api/v1/studies/import HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n"
        "Content-Length: 1000000\r\n\r\n{"
    )
    with send(client, head.encode()):
        wait_until(lambda: runtime_of(app).imports.callers)
        answer = client.post("/api/v1/studies/import", content=b"{", headers=bearer(ADMIN_TOKEN))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "10")
    wait_until(lambda: not runtime_of(app).imports.callers)
    assert client.post("/api/v1/studies/import", content=b"{", headers=bearer(ADMIN_TOKEN)).status_code == 422
