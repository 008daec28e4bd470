"""`foldwise doctor` outside a cluster, of coordinators, cache folders and databases, good and bad."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from sqlalchemy import make_url
from typer.testing import CliRunner

from cli.main import app
from services.contracts import TokenScope
from tests.acceptance.up import foldwise
from tests.harness.machines_with_gpus import OLD_DRIVER, machine
from tests.harness.served_app import ADMIN_TOKEN, WORKER_TOKEN, bearer, make_token

Findings = dict[str, dict[str, Any]]
NOWHERE = "http://127.0.0.1:1"


def examine(*arguments: str, url: str | httpx.URL = NOWHERE, token: str = ADMIN_TOKEN) -> tuple[int, Findings]:
    """The exit code of the command, and its findings by what was examined."""
    command = ["doctor", "--json", "--url", str(url).rstrip("/"), *arguments]
    given = {"FOLDWISE_TOKEN": token, "FOLDWISE_DATABASE_URL": "", "FOLDWISE_CACHE_ROOT": None}
    # A coordinator of this process logs too.
    with structlog.testing.capture_logs():
        ended = CliRunner().invoke(app, command, env=given)
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    findings = {finding["what"]: finding for finding in json.loads(ended.stdout)}
    assert ended.exit_code == (0 if all(finding["good"] for finding in findings.values()) else 1)
    for finding in findings.values():
        assert finding["good"] or finding["fix"], f"no way out of {finding}"
    return ended.exit_code, findings


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """The address of a small server that answers every GET with this body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_versions_and_the_device_are_found_on_every_machine() -> None:
    _, found = examine()
    assert found["foldwise"]["good"]
    assert found["foldwise"]["found"].startswith(f"{version('foldwise')}, Python 3.")
    assert found["gpu"]["good"], "a machine without a GPU is not broken"


def test_each_gpu_is_tried_and_one_without_kernels_is_a_problem() -> None:
    run = foldwise("doctor", "--json", "--url", NOWHERE, **machine(3, old_gpus=[1]))
    assert run.returncode == 1, run.stderr
    found = {finding["what"]: finding for finding in json.loads(run.stdout)}
    assert found["gpu cuda:0"]["good"]
    assert re.fullmatch(
        r"Faked GPU 0, compute capability 9\.0, driver \S+, torch \S+ for CUDA \S+, computes correctly",
        found["gpu cuda:0"]["found"],
    )
    assert not found["gpu cuda:1"]["good"]
    assert found["gpu cuda:1"]["found"].startswith(
        "cuda:1 (Faked GPU 1) has compute capability 7.0, and torch "
    )
    assert found["gpu cuda:1"]["fix"] == "use another GPU, or install a torch build for this one"
    assert found["gpu cuda:2"]["good"]


def test_a_driver_that_is_too_old_is_a_problem() -> None:
    run = foldwise("doctor", "--json", "--url", NOWHERE, **machine(0, error=OLD_DRIVER))
    found = {finding["what"]: finding for finding in json.loads(run.stdout)}
    assert not found["gpu"]["good"]
    assert "supports CUDA up to 11.4, and torch" in found["gpu"]["found"]
    assert found["gpu"]["fix"].startswith("update the driver")


# --- A coordinator ----------------------------------------------------------------------------------------


def test_a_coordinator_that_works(client: httpx.Client) -> None:
    code, found = examine(url=client.base_url)
    assert code == 0
    assert {"coordinator", "token", "caches", "workers"} <= found.keys()
    assert "tiny/ffffffffffff" in found["caches"]["found"]
    assert "versions" not in found


def test_a_study_without_workers_is_a_problem(client: httpx.Client) -> None:
    assert examine(url=client.base_url)[1]["workers"]["good"], "nothing waits for workers"
    spec = {"name": "waiting", "cache": "tiny", "training": {"frames": 2, "frame_size": 16}}
    client.post("/api/v1/studies", headers=bearer(ADMIN_TOKEN), json=spec).raise_for_status()
    code, found = examine(url=client.base_url)
    assert (code, found["workers"]["good"]) == (1, False)
    assert found["workers"]["found"] == "0 seen recently; running studies: waiting"
    client.post("/api/v1/studies/waiting/pause", headers=bearer(ADMIN_TOKEN)).raise_for_status()
    found = examine(url=client.base_url)[1]
    assert found["workers"]["good"], "a paused study does not need them"
    client.post("/api/v1/studies/waiting/resume", headers=bearer(ADMIN_TOKEN)).raise_for_status()
    worker = {"id": "worker-w", "name": "w", "device": "cpu"}
    client.post(
        "/api/v1/claims",
        headers=bearer(WORKER_TOKEN) | {"Idempotency-Key": "k" * 16},
        json={"worker": worker, "caches": [], "wait_seconds": 0},
    ).raise_for_status()
    found = examine(url=client.base_url)[1]
    assert found["workers"]["good"]
    assert found["workers"]["found"] == "1 seen recently; running studies: waiting"


def test_a_token_that_may_not_read_is_a_problem(client: httpx.Client) -> None:
    for token in ("guess", WORKER_TOKEN):
        code, found = examine(url=client.base_url, token=token)
        assert (code, found["coordinator"]["good"], found["token"]["good"]) == (1, True, False)
        assert "workers" not in found
    reading = make_token(client, TokenScope.READ)
    assert examine(url=client.base_url, token=reading.token)[0] == 0


def test_a_coordinator_that_does_not_answer_is_a_problem() -> None:
    code, found = examine(url=NOWHERE)
    assert (code, found["coordinator"]["good"]) == (1, False)
    assert NOWHERE in found["coordinator"]["found"]


@pytest.mark.parametrize("answer", [b"<p>another program</p>", b"{}", b"[]", b"null", b'{"version": "1"'])
@pytest.mark.parametrize("status", [200, 404])
def test_another_program_at_its_address_is_a_problem(status: int, answer: bytes) -> None:
    with answering(status, answer) as url:
        code, found = examine(url=url)
    assert (code, found["coordinator"]["good"]) == (1, False)
    assert set(found["coordinator"]) >= {"found", "fix"}


def test_a_coordinator_that_is_not_ready_says_why() -> None:
    with answering(503, b'{"detail": "the database does not answer"}') as url:
        code, found = examine(url=url)
    assert (code, found["coordinator"]["good"]) == (1, False)
    assert found["coordinator"]["found"] == "the database does not answer"


def test_another_version_of_the_coordinator_is_a_problem() -> None:
    with answering(200, b'{"version": "0.0.1"}') as url:
        code, found = examine(url=url)
    assert (code, found["versions"]["good"]) == (1, False)
    assert "0.0.1" in found["versions"]["found"]
    assert version("foldwise") in found["versions"]["found"]


def test_a_coordinator_without_a_leader_is_a_problem(client: httpx.Client) -> None:
    ready = client.get("/readyz").json()
    assert ready["trouble"] is None
    trouble = "no coordinator has led for 60 s"
    with answering(200, json.dumps({**ready, "trouble": trouble}).encode()) as url:
        code, found = examine(url=url)
    assert (code, found["leader"]["good"], found["leader"]["found"]) == (1, False, trouble)


# --- A cache folder and a database ------------------------------------------------------------------------


def test_a_cache_folder_is_listed_or_a_problem(cache_root: Path, tmp_path: Path) -> None:
    _, found = examine("--cache-root", str(cache_root))
    assert found["cache folder"]["good"]
    assert "tiny/ffffffffffff" in found["cache folder"]["found"]
    _, found = examine("--cache-root", str(tmp_path))
    assert found["cache folder"]["good"], "an empty folder is where preprocessing writes to"
    _, found = examine("--cache-root", str(tmp_path / "nowhere"))
    assert not found["cache folder"]["good"]
    assert str(tmp_path / "nowhere") in found["cache folder"]["found"]


def test_a_database_with_our_schema(database_url: str) -> None:
    _, found = examine("--database-url", database_url)
    assert found["database"]["good"]
    assert re.fullmatch(r"PostgreSQL \d\d", found["database"]["found"])
    assert found["schema"]["good"]


def test_a_database_that_is_too_old_is_a_problem(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.doctor.machine.OLDEST_POSTGRESQL", 1_000_000)
    _, found = examine("--database-url", database_url)
    assert not found["database"]["good"]


def test_a_database_without_our_schema_is_to_be_migrated(postgres: str) -> None:
    _, found = examine("--database-url", postgres)
    assert found["database"]["good"]
    assert not found["schema"]["good"]
    assert "foldwise migrate" in found["schema"]["fix"]


@pytest.mark.parametrize("change", [{"host": "127.0.0.1", "port": 1}, {"database": "nowhere"}])
def test_a_database_that_cannot_be_reached_is_a_problem(postgres: str, change: dict[str, Any]) -> None:
    url = make_url(postgres)
    if "host" in change:
        url = url.set(query={})
    _, found = examine("--database-url", url.set(**change).render_as_string(hide_password=False))
    assert not found["database"]["good"]
    assert "\n" not in found["database"]["found"]
    assert "schema" not in found
