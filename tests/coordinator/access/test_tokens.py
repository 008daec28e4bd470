"""Tokens: every route asks for its scope, revocation counts in time, guessing is slow, secrets stay secret."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import sessionmaker
from typer.testing import CliRunner

from cli.main import app as command_line
from client import connection
from client.connection import Connection
from client.study_client import StudyClient
from coordinator.access import tokens
from coordinator.access.authentication import Caller, Callers
from coordinator.access.authorization import OPEN_PATHS
from coordinator.access.paths import is_open
from coordinator.runtime import runtime_of
from coordinator.settings import CoordinatorSettings
from services import errors
from services.contracts import NewToken, TokenScope, TokenSpec
from services.errors import (
    Conflict,
    FoldwiseError,
    InvalidInput,
    NotFound,
    ScopeMissing,
    TokenRefused,
    TooManyRequests,
)
from services.logs import configure_logs
from tests.acceptance.up import foldwise
from tests.harness.coordinator_harness import wait_until
from tests.harness.served_app import ADMIN_TOKEN, WORKER_TOKEN, bearer, make_token, served

OPENED_BY = {
    TokenScope.WORKER: {"worker"},
    TokenScope.READ: {"read"},
    TokenScope.WRITE: {"read", "write"},
    TokenScope.ADMIN: {"worker", "read", "write", "admin"},
}
UNKNOWN = "fw_0123456789ab_" + "x" * 43


# --- Scopes -----------------------------------------------------------------------------------------------


def test_every_route_refuses_all_tokens_but_those_of_its_scope(client: httpx.Client, app: FastAPI) -> None:
    assert walk(client, app) > 20


def test_a_new_route_without_a_scope_is_noticed(client: httpx.Client, app: FastAPI) -> None:
    app.add_api_route("/api/v1/new", lambda: {"open": "to any token"}, methods=["GET"])
    with pytest.raises(AssertionError, match="/api/v1/new"):
        walk(client, app, only="/api/v1/new")


def test_a_router_lets_nobody_in_whom_the_gate_has_not_seen(app: FastAPI) -> None:
    app.user_middleware = [
        m for m in app.user_middleware if getattr(m.cls, "__name__", "") != "TokenMiddleware"
    ]
    with served(app) as client:
        for path in ("/api/v1/studies", "/api/v1/tokens", "/metrics"):
            assert client.get(path, headers=bearer(ADMIN_TOKEN)).status_code == 401


def test_what_is_no_token_or_almost_one_is_refused(client: httpx.Client) -> None:
    made = make_token(client, TokenScope.ADMIN)
    assert client.get("/api/v1/tokens", headers=bearer(made.token)).status_code == 200
    almost = (made.token[:-1], made.token + "x", made.token.upper(), made.id, ADMIN_TOKEN + "x", "a.b.c")
    for headers in (
        *map(bearer, almost),
        {"Authorization": made.token},
        {"Authorization": f"Basic {made.token}"},
    ):
        assert client.get("/api/v1/tokens", headers=headers).status_code == 401, headers


def test_what_is_no_route_is_told_to_nobody_without_a_token(client: httpx.Client) -> None:
    for path in ("/docs", "/no/such/route", "/openapi.json"):
        assert client.post(path, content=b"not json").status_code == 401
    assert client.get("/openapi.json", headers=bearer(WORKER_TOKEN)).status_code == 200
    missing = client.get("/no/such/route", headers=bearer(WORKER_TOKEN))
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    wrong = client.put("/api/v1/datasets", headers=bearer(ADMIN_TOKEN))
    assert (wrong.status_code, wrong.headers["allow"], wrong.json()["status"]) == (405, "GET", 405)


def walk(client: httpx.Client, app: FastAPI, only: str = "") -> int:
    """Ask every route, or `only` one, with every kind of token; how many were asked."""
    made = {scope: make_token(client, scope, f"{scope.value} of a walk") for scope in TokenScope}
    revoked = make_token(client, TokenScope.ADMIN, "revoked")
    client.delete(f"/api/v1/tokens/{revoked.id}", headers=bearer(ADMIN_TOKEN)).raise_for_status()
    refused = [{}, bearer(UNKNOWN), bearer(revoked.token)]
    walked = 0
    for route in iter_route_contexts(app.routes):
        path = (route.path or "").replace("{", "").replace("}", "")
        if path in OPEN_PATHS | {"/openapi.json"} or is_open(path) or not path.startswith(only):
            continue
        for method in route.methods or ():
            walked += 1
            where = f"{method} {path}"
            for headers in refused:
                answer = client.request(method, path, headers=headers, content=b"not json")
                assert (answer.status_code, answer.json()["type"]) == (401, "urn:foldwise:token-refused"), where
                assert answer.headers["www-authenticate"] == "Bearer"
            for scope, token in made.items():
                # Without the body: a stream of events does not end.
                with client.stream(method, path, headers=bearer(token.token)) as answer:
                    pass
                opened = needed_scope(method, path) in OPENED_BY[scope]
                assert (answer.status_code == 403) is not opened, f"{where} with {scope}: {answer.status_code}"
                assert answer.status_code != 401, where
    return walked


def needed_scope(method: str, path: str) -> str:
    """What docs/security.md promises."""
    if path.startswith(("/api/v1/claims", "/api/v1/leases")):
        return "worker"
    if path.startswith("/api/v1/tokens") or method == "DELETE":
        return "admin"
    return "read" if method == "GET" or path == "/sign-out" else "write"


# --- Making and revoking ----------------------------------------------------------------------------------


def test_a_token_is_told_once_and_only_its_hash_is_kept(client: httpx.Client, engine: Engine) -> None:
    answer = client.post(
        "/api/v1/tokens", headers=bearer(ADMIN_TOKEN), json={"name": "report", "scope": "read"}
    )
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    made = NewToken.model_validate_json(answer.content)
    assert re.fullmatch(r"fw_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", made.token)
    listed = client.get("/api/v1/tokens", headers=bearer(ADMIN_TOKEN)).json()
    assert [(t["id"], t["name"], t["scope"], t["last_used"]) for t in listed] == [
        (made.id, "report", "read", None)
    ]
    secret = made.token.split("_", 2)[2]
    with engine.connect() as connection:
        kept = connection.execute(text("SELECT t::text FROM foldwise.tokens t")).scalar_one()
    assert secret not in kept + json.dumps(listed)


def test_a_name_is_taken_until_its_token_is_revoked(client: httpx.Client) -> None:
    first = make_token(client, TokenScope.READ, "report")
    again = {"name": "report", "scope": "write"}
    refused = client.post("/api/v1/tokens", headers=bearer(ADMIN_TOKEN), json=again)
    assert (refused.status_code, refused.json()["field"]) == (409, "name")
    assert first.id in refused.json()["detail"]
    for _ in range(2):
        revoked = client.delete(f"/api/v1/tokens/{first.id}", headers=bearer(ADMIN_TOKEN))
        assert revoked.status_code == 204
    assert client.get("/api/v1/studies", headers=bearer(first.token)).status_code == 401
    assert make_token(client, TokenScope.WRITE, "report").scope == TokenScope.WRITE
    times = [t["revoked_at"] for t in client.get("/api/v1/tokens", headers=bearer(ADMIN_TOKEN)).json()]
    assert times[0] is not None
    assert times[1] is None
    missing = client.delete("/api/v1/tokens/0123456789ab", headers=bearer(ADMIN_TOKEN))
    assert missing.status_code == 404
    for name in ("", "new\nline", "x" * 65, "-dash"):
        bad = client.post("/api/v1/tokens", headers=bearer(ADMIN_TOKEN), json={"name": name, "scope": "read"})
        assert (bad.status_code, bad.json()["field"]) == (422, "name")


def test_the_command_line_makes_lists_and_revokes(client: httpx.Client) -> None:
    def run(*arguments: str, token: str = ADMIN_TOKEN) -> Any:
        where = {"FOLDWISE_URL": str(client.base_url), "FOLDWISE_TOKEN": token, "COLUMNS": "200"}
        # The coordinator logs in the same process; what it says is not the command's.
        with structlog.testing.capture_logs():
            return CliRunner().invoke(command_line, ["token", *arguments], env=where)

    assert "there is no token yet" in run("list").stdout
    created = run("create", "nightly", "--scope", "read")
    secret = created.stdout.strip()
    assert created.exit_code == 0
    assert "not shown again" in created.stderr
    assert client.get("/api/v1/studies", headers=bearer(secret)).status_code == 200
    told = json.loads(run("create", "deploy", "--scope", "write", "--json").stdout)
    assert client.get("/api/v1/studies", headers=bearer(told["token"])).status_code == 200

    listed = run("list").stdout
    assert [line.split()[:3] for line in listed.splitlines()[1:]] == [
        [secret[3:15], "nightly", "read"],
        [told["id"], "deploy", "write"],
    ]
    assert json.loads(run("list", "--json").stdout)[0]["id"] == secret[3:15]
    assert "is revoked" in run("revoke", secret[3:15]).stdout
    assert client.get("/api/v1/studies", headers=bearer(secret)).status_code == 401

    for arguments, token, kind in (
        (("create", "deploy", "--scope", "read"), ADMIN_TOKEN, Conflict),
        (("create", "a\tb", "--scope", "read"), ADMIN_TOKEN, InvalidInput),
        (("revoke", "0123456789ab"), ADMIN_TOKEN, NotFound),
        (("list",), told["token"], ScopeMissing),
        (("list",), secret, TokenRefused),
    ):
        assert isinstance(run(*arguments, token=token).exception, kind), arguments
    ended = foldwise("token", "list", FOLDWISE_URL=str(client.base_url), FOLDWISE_TOKEN=told["token"])
    assert (ended.returncode, ended.stdout) == (64, "")
    assert ended.stderr == (
        "foldwise: this request needs the scope admin, but the token has the scope write; an admin can create "
        "another with `foldwise token create NAME --scope admin`\n"
    )


# --- Remembering ------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Replica:
    """What a coordinator knows of callers, without HTTP."""

    def __init__(self, engine: Engine, settings: CoordinatorSettings) -> None:
        self.sessions = sessionmaker(engine, expire_on_commit=False)
        self.clock = Clock()
        self.callers = Callers(self.sessions, settings, clock=self.clock)

    def identify(self, token: str, address: str = "10.0.0.1") -> Caller:
        return asyncio.run(self.callers.identify(f"Bearer {token}", address))

    def make(self, scope: TokenScope = TokenScope.READ, name: str = "t") -> NewToken:
        with self.sessions.begin() as session:
            return tokens.create(session, TokenSpec(name=name, scope=scope))

    def revoke(self, token: NewToken) -> None:
        with self.sessions.begin() as session:
            tokens.revoke(session, token.id)


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """The statements that the database is sent meanwhile."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


def test_a_known_token_is_not_looked_up_for_every_request(
    engine: Engine, settings: CoordinatorSettings
) -> None:
    replica = Replica(engine, replace(settings, token_seconds=5))
    token = replica.make(TokenScope.WRITE)
    with statements(engine) as sent:
        callers = {replica.identify(token.token) for _ in range(50)}
        replica.callers.close()
    assert callers == {Caller(name="t", scope=TokenScope.WRITE, token_id=token.id)}
    assert [statement.split()[0] for statement in sorted(sent)] == ["SELECT", "UPDATE"]


def test_the_tokens_of_the_start_ask_the_database_nothing(
    engine: Engine, settings: CoordinatorSettings
) -> None:
    replica = Replica(engine, settings)
    with statements(engine) as sent:
        assert replica.identify(ADMIN_TOKEN).scope == TokenScope.ADMIN
        assert replica.identify(WORKER_TOKEN).scope == TokenScope.WORKER
    assert sent == []
    alone = Replica(engine, replace(settings, worker_token=None))
    for no_token in (WORKER_TOKEN, "None", ""):
        with pytest.raises(TokenRefused):
            alone.identify(no_token)


def test_a_revocation_counts_on_every_replica_within_the_time_that_is_promised(
    engine: Engine, settings: CoordinatorSettings
) -> None:
    replicas = [Replica(engine, replace(settings, token_seconds=5)) for _ in range(2)]
    token = replicas[0].make()
    for replica in replicas:
        replica.identify(token.token)
        replica.clock.now += 4.9
    replicas[0].revoke(token)
    for replica in replicas:
        replica.identify(token.token)
        replica.clock.now += 0.1
        with pytest.raises(TokenRefused, match="unknown or was revoked"):
            replica.identify(token.token)


def test_the_last_use_is_noted_once_a_minute(engine: Engine, settings: CoordinatorSettings) -> None:
    replica = Replica(engine, settings)
    token = replica.make()
    with statements(engine) as sent:
        for _ in range(3):
            replica.identify(token.token)
            replica.clock.now += 29
        replica.callers.close()
    assert sum(statement.startswith("UPDATE") for statement in sent) == 1
    with replica.sessions() as session:
        noted = tokens.list_all(session)[0].last_used
    with replica.sessions.begin() as session:
        tokens.record_use(session, token.id)
    with replica.sessions() as session:
        assert tokens.list_all(session)[0].last_used == noted


def test_a_use_is_seen_in_the_list(client: httpx.Client) -> None:
    token = make_token(client, TokenScope.READ)
    client.get("/api/v1/studies", headers=bearer(token.token))
    wait_until(lambda: client.get("/api/v1/tokens", headers=bearer(ADMIN_TOKEN)).json()[0]["last_used"])


# --- Limits -----------------------------------------------------------------------------------------------


def test_guessing_is_slow_and_holds_up_nobody_who_was_let_in_before(
    engine: Engine, settings: CoordinatorSettings
) -> None:
    replica = Replica(engine, replace(settings, guesses_per_minute=3))
    known, new = replica.make(name="known"), replica.make(name="new")
    replica.identify(known.token)
    for _ in range(3):
        with pytest.raises(TokenRefused):
            replica.identify(UNKNOWN)
    with pytest.raises(TooManyRequests) as late, statements(engine) as sent:
        replica.identify(UNKNOWN)
    assert sent == []
    assert late.value.retry_after == pytest.approx(20)
    with pytest.raises(TooManyRequests):
        replica.identify(new.token)
    # A token that was good is looked up whoever guesses, and others from other addresses are too.
    assert replica.identify(known.token).name == "known"
    assert replica.identify(new.token, "10.0.0.2").name == "new"
    replica.clock.now += 20
    for _ in range(10):
        assert replica.identify(new.token).name == "new"
    with pytest.raises(TokenRefused):
        replica.identify(UNKNOWN)
    replica.callers.close()


def test_who_asks_too_often_is_told_when_to_come_back_and_our_client_does(
    app: FastAPI, settings: CoordinatorSettings
) -> None:
    clock = Clock()
    limited = replace(settings, requests_per_second=2)
    with served(app) as client, ThreadPoolExecutor(1) as pool:
        runtime = runtime_of(app)
        app.state.runtime = replace(runtime, callers=Callers(runtime.sessions, limited, clock=clock))
        url = str(client.base_url)
        for _ in range(4):
            assert client.get("/api/v1/studies", headers=bearer(ADMIN_TOKEN)).status_code == 200
        with Connection(url, ADMIN_TOKEN, give_up_after=0) as impatient:
            with pytest.raises(TooManyRequests, match="more than 2 requests per second") as told:
                StudyClient(impatient).studies()
            assert "\n" not in told.value.message
            assert told.value.exit_code == 75
        refused = client.get("/api/v1/studies", headers=bearer(ADMIN_TOKEN))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        # Others are not held up.
        assert client.post("/api/v1/claims", headers=bearer(WORKER_TOKEN)).status_code == 422

        def refusals() -> float | None:
            labels = {"method": "GET", "route": "none", "status": "429"}
            told: float | None = runtime.metrics.get_sample_value("foldwise_http_requests_total", labels)
            return told

        with Connection(url, ADMIN_TOKEN, give_up_after=20) as patient:
            started = time.monotonic()
            asking = pool.submit(StudyClient(patient).studies)
            wait_until(lambda: refusals() == 3)
            clock.now += 1
            assert asking.result() == []
        assert time.monotonic() - started >= 1.0
        assert refusals() == 3


def test_a_worker_reads_its_token_anew_for_every_request(client: httpx.Client, tmp_path: Path) -> None:
    file = tmp_path / "token"
    first, second = (make_token(client, TokenScope.READ, name) for name in ("first", "second"))
    file.write_text(first.token)
    with Connection(str(client.base_url), file.read_text, give_up_after=0) as connection:
        assert StudyClient(connection).studies() == []
        client.delete(f"/api/v1/tokens/{first.id}", headers=bearer(ADMIN_TOKEN)).raise_for_status()
        with pytest.raises(TokenRefused):
            StudyClient(connection).studies()
        file.write_text(second.token)
        assert StudyClient(connection).studies() == []


# --- Logs -------------------------------------------------------------------------------------------------


def test_no_secret_is_ever_logged(
    app: FastAPI, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpcore").setLevel(logging.INFO)
    configure_logs()
    try:
        with served(app, log_level="trace", access_log=True) as client:
            secrets = {ADMIN_TOKEN, WORKER_TOKEN, *use_everything(client)}
    finally:
        structlog.reset_defaults()
    captured = capfd.readouterr()
    logged = captured.out + captured.err + caplog.text
    # What is said by us, and by the server at its most talkative.
    for event_name in ("fold_leased", "token_created", "token_revoked", "study_created", "/api/v1/claims"):
        assert event_name in logged
    for secret in secrets:
        assert secret not in logged


def use_everything(client: httpx.Client) -> set[str]:
    """Good and bad tokens, a claim, calls on its lease with its secret and with another; all the secrets."""
    admin = make_token(client, TokenScope.ADMIN)
    worker = make_token(client, TokenScope.WORKER)
    guessed = {UNKNOWN, "guess-of-a-token", "eyJhbGci.eyJzdWIi.c2lnbmF0", worker.token[:-3] + "abc"}
    for token in guessed:
        assert client.get("/api/v1/studies", headers=bearer(token)).status_code == 401
        assert client.post("/api/v1/claims", headers=bearer(token), content=b"{").status_code == 401
    spec = {"name": "s", "cache": "tiny", "training": {"frames": 2, "frame_size": 16}}
    assert client.post("/api/v1/studies", headers=bearer(admin.token), json=spec).status_code == 201
    claimed = client.post(
        "/api/v1/claims",
        headers={**bearer(worker.token), "Idempotency-Key": str(uuid.uuid4())},
        json={
            "worker": {"id": "worker-one", "name": "one", "device": "cpu"},
            "caches": ["f" * 64],
            "wait_seconds": 20,
        },
    )
    assert claimed.status_code == 200
    lease = claimed.json()["lease"]
    wrong = "not-the-secret-of-the-lease"
    for secret, status in ((lease["secret"], 200), (wrong, 401)):
        headers = {**bearer(worker.token), "Lease-Term": "1", "Lease-Secret": secret}
        beat = client.post(
            f"/api/v1/leases/{lease['id']}/heartbeat", headers=headers, json={"epoch": 0, "step": 1}
        )
        assert beat.status_code == status
        bad = client.put(f"/api/v1/leases/{lease['id']}/result", headers=headers, json={"epochs": []})
        assert bad.status_code == 422
        failed = {"kind": "environment", "message": "no device"}
        client.post(f"/api/v1/leases/{lease['id']}/fail", headers=headers, json=failed)
    assert client.delete(f"/api/v1/tokens/{worker.id}", headers=bearer(admin.token)).status_code == 204
    assert client.get("/api/v1/studies", headers=bearer(worker.token)).status_code == 401
    return {admin.token, worker.token, lease["secret"], wrong, *guessed}


def test_the_client_knows_every_class_that_a_problem_can_name() -> None:
    named = {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FoldwiseError)
    }
    # The coordinator's machine says nothing about the client's, so the client gets a plain FoldwiseError.
    about_a_machine = {errors.MachineUnusable, errors.CacheUnreadable}
    assert set(connection._ERRORS) == named - {FoldwiseError} - about_a_machine
