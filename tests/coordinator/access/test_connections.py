"""Requests without end: heads and bodies that are too large or too slow cost nobody else anything."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from coordinator.access import connections
from coordinator.access.connections import MAX_HEAD_BYTES
from tests.harness.served_app import ADMIN_TOKEN, WORKER_TOKEN, bearer


@pytest.fixture
def raw(client: httpx.Client) -> Iterator[socket.socket]:
    assert client.base_url.port is not None
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        yield connection


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def refused(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics", headers=bearer(ADMIN_TOKEN)).text.splitlines()
    found = [line for line in lines if line.startswith("foldwise_connections_refused_total")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in found}


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES + 10_000, 20 * 2**20])
def test_a_head_without_end_is_refused(client: httpx.Client, raw: socket.socket, size: int) -> None:
    # The answer may be lost, because the connection is closed while the head is still sent.
    with suppress(BrokenPipeError, ConnectionResetError):
        raw.sendall(b"GET /livez HTTP/1.1\r\nHost: h\r\nX-Long: ")
        for _ in range(size // 1000):
            raw.sendall(b"x" * 1000)
        received(raw)
    assert refused(client) == {"head_too_large": 1.0}
    assert client.get("/livez").status_code == 200


def test_a_head_that_is_complete_and_too_large_is_refused(client: httpx.Client, raw: socket.socket) -> None:
    raw.sendall(b"GET /livez HTTP/1.1\r\nHost: h\r\n" + b"X-Long: x\r\n" * 20_000 + b"\r\n")
    assert received(raw).startswith(b"HTTP/1.1 431 ")
    assert refused(client) == {"head_too_large": 1.0}


def test_a_large_head_and_a_large_body_pass(client: httpx.Client) -> None:
    headers = {**bearer(WORKER_TOKEN), "X-Long": "x" * (MAX_HEAD_BYTES - 2000)}
    assert client.get("/livez", headers=headers).status_code == 200
    body = b" " * (8 * 2**20)
    answer = client.put(
        "/api/v1/leases/l/result",
        content=body,
        headers={**headers, "Lease-Term": "1", "Lease-Secret": "s", "Content-Type": "application/json"},
    )
    assert answer.status_code == 422
    assert refused(client) == {}


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: ", "head_too_slow"),
        (
            b"POST /api/v1/claims HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\nAuthorization: Bearer "
            + WORKER_TOKEN.encode()
            + b"\r\n\r\n{",
            "body_too_slow",
        ),
    ],
)
def test_what_stops_half_way_is_closed(
    client: httpx.Client, raw: socket.socket, sent: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.3)
    raw.sendall(sent)
    assert received(raw).startswith(b"HTTP/1.1 408 ")
    assert refused(client) == {reason: 1.0}


def test_a_second_request_on_a_connection_has_its_own_time(
    client: httpx.Client, raw: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    request = b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n"
    raw.sendall(request)
    assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")
    raw.sendall(request[:10])
    assert received(raw).startswith(b"HTTP/1.1 408 ")
    assert refused(client) == {"head_too_slow": 1.0}


def test_requests_that_follow_each_other_at_once_have_heads_and_bodies_of_their_own(
    client: httpx.Client, raw: socket.socket
) -> None:
    body = b" " * 50_000
    request = (
        b"POST /api/v1/claims HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nAuthorization: Bearer "
        + WORKER_TOKEN.encode()
        + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
    )
    raw.sendall(request * 5 + b"GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    answers = received(raw)
    assert answers.count(b"HTTP/1.1 422 ") == 5
    assert answers.count(b"HTTP/1.1 200 ") == 1
    assert refused(client) == {}
