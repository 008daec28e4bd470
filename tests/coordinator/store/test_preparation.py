"""What a cluster does with a database before coordinators run on it, and the dashboard beside them."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server
from wsgiref.types import StartResponse, WSGIEnvironment

import httpx
import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError
from typer.testing import CliRunner

from cli.local.dashboard import wait_for_tables
from cli.local.dashboard_auth import TokenAuthMiddleware
from cli.local.migrate import bring_up_to_date
from cli.main import app
from coordinator.app import create_app
from coordinator.store.database import connect, with_driver
from coordinator.store.preparation import wait_for_database, wait_for_schema
from services.contracts import TokenScope
from services.errors import Conflict, InvalidInput, Unavailable
from services.revision import SOURCE, revision_of_source
from services.secrets import read_database_url
from tests.harness.coordinator_harness import Harness
from tests.harness.served_app import ADMIN_TOKEN, bearer, make_token, served


def as_role(url: str, name: str, password: str) -> str:
    return make_url(url).set(username=name, password=password).render_as_string(hide_password=False)


@pytest.fixture
def reader(database_url: str) -> Iterator[str]:
    """The URL of a role that does not exist yet; its password needs every kind of quoting."""
    name = f"reader-{make_url(database_url).database}"
    yield as_role(database_url, name, "a'b\"c%d:e/f")
    owner = connect(database_url)
    with owner.begin() as connection:
        connection.execute(text(f'DROP OWNED BY "{name}"'))
        connection.execute(text(f'DROP ROLE "{name}"'))
    owner.dispose()


def test_the_dashboard_s_role_reads_optuna_s_tables_and_nothing_else(database_url: str, reader: str) -> None:
    for _ in range(2):
        bring_up_to_date(database_url, reader_url=reader, wait_seconds=0)
    theirs = connect(reader)
    with theirs.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM studies")) == 0
    for statement in (
        "SELECT count(*) FROM foldwise.studies",
        "DELETE FROM studies",
        "INSERT INTO studies (study_name) VALUES ('x')",
    ):
        with theirs.connect() as connection, pytest.raises(ProgrammingError, match="permission denied"):
            connection.execute(text(statement))
    theirs.dispose()


def test_a_role_that_cannot_be_made_is_named(database_url: str, reader: str) -> None:
    bring_up_to_date(database_url, reader_url=reader, wait_seconds=0)
    with pytest.raises(InvalidInput, match="names no role"):
        bring_up_to_date(database_url, reader_url="postgresql:///x", wait_seconds=0)


def test_a_coordinator_that_does_not_migrate_waits_for_the_schema(engine: Engine, database_url: str) -> None:
    wait_for_schema(engine, 0)
    with engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.schema_version SET version_num = '0001'"))
    with pytest.raises(Unavailable, match=r"its revision is 0001, not \d+; run `foldwise migrate`"):
        wait_for_schema(engine, 0)
    with engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.schema_version SET version_num = '9999'"))
    with pytest.raises(Conflict, match="run the newer foldwise again"):
        wait_for_schema(engine, 60)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA foldwise CASCADE"))
    with pytest.raises(Unavailable, match="run `foldwise migrate`"):
        wait_for_schema(engine, 0)
    ready = threading.Thread(target=wait_for_schema, args=(engine, 30))
    ready.start()
    bring_up_to_date(database_url, reader_url=None, wait_seconds=0)
    ready.join(30)
    assert not ready.is_alive()


def test_a_database_that_is_not_there_is_waited_for_and_then_named() -> None:
    engine = connect("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(Unavailable, match=r"does not answer: .*refused"):
        wait_for_database(engine, 0)
    engine.dispose()


def test_a_role_of_the_name_of_our_schema_has_optuna_s_tables_elsewhere(postgres: str) -> None:
    """PostgreSQL looks into the schema of the role's name first, and the chart's role is `foldwise`."""
    server = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("CREATE ROLE foldwise LOGIN"))
        connection.execute(text("CREATE DATABASE own OWNER foldwise"))
    url = make_url(postgres).set(database="own", username="foldwise").render_as_string(hide_password=False)
    bring_up_to_date(url, reader_url=None, wait_seconds=0)
    # Once more, when both are there.
    bring_up_to_date(url, reader_url=None, wait_seconds=0)
    engine = connect(url)
    with engine.connect() as connection:
        where = connection.execute(text("SELECT schemaname FROM pg_tables WHERE tablename = 'studies'"))
        assert sorted(where.scalars()) == ["foldwise", "public"]
    engine.dispose()
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE own WITH (FORCE)"))
        connection.execute(text("DROP ROLE foldwise"))
    server.dispose()


def test_a_dashboard_waits_for_optuna_s_tables(postgres: str) -> None:
    server = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("CREATE DATABASE late"))
    url = make_url(postgres).set(database="late").render_as_string(hide_password=False)
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(wait_for_tables(url)))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    bring_up_to_date(url, reader_url=None, wait_seconds=0)
    waiting.join(30)
    assert len(found) == 1
    found[0].engine.dispose()  # type: ignore[attr-defined]
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE late WITH (FORCE)"))
    server.dispose()


def test_a_database_that_cannot_hold_every_text_is_refused(postgres: str) -> None:
    """As `initdb` makes one where no locale is set, in a container say."""
    server = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("CREATE DATABASE bare ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"))
    url = make_url(postgres).set(database="bare").render_as_string(hide_password=False)
    with pytest.raises(InvalidInput, match="the database bare has the encoding SQL_ASCII"):
        bring_up_to_date(url, reader_url=None, wait_seconds=0)
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE bare"))
    server.dispose()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_a_database_s_url_comes_from_a_file_in_any_writing(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uri").write_text(f"{scheme}://me:pw@db:5432/foldwise\n")
    monkeypatch.setenv("FOLDWISE_DATABASE_URL_FILE", str(tmp_path / "uri"))
    assert with_driver(read_database_url(None)) == "postgresql+psycopg://me:pw@db:5432/foldwise"
    assert read_database_url("sqlite://") == "sqlite://"
    monkeypatch.delenv("FOLDWISE_DATABASE_URL_FILE")
    with pytest.raises(InvalidInput, match="set FOLDWISE_DATABASE_URL or FOLDWISE_DATABASE_URL_FILE"):
        read_database_url(None)


@pytest.fixture
def coordinator(harness: Harness) -> Iterator[httpx.Client]:
    settings = replace(harness.settings, admin_token=ADMIN_TOKEN, token_seconds=0)
    with served(create_app(settings)) as client:
        yield client


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def door(coordinator: httpx.Client) -> Iterator[tuple[httpx.Client, Clock]]:
    """A small application behind a door that asks the coordinator."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [json.dumps("HTTP_AUTHORIZATION" in environ or "HTTP_COOKIE" in environ).encode()]

    clock = Clock()
    closed = TokenAuthMiddleware(application, str(coordinator.base_url), clock=clock)
    with closing(closed), make_server("127.0.0.1", 0, closed) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
            yield client, clock
        server.shutdown()
        thread.join()


def test_the_dashboard_s_door_opens_to_tokens_that_may_read(
    coordinator: httpx.Client, door: tuple[httpx.Client, Clock]
) -> None:
    client, clock = door
    closed = client.get("/")
    assert closed.status_code == 401
    assert closed.headers["WWW-Authenticate"].startswith("Basic ")
    reading = make_token(coordinator, TokenScope.READ)
    working = make_token(coordinator, TokenScope.WORKER)
    for auth in (httpx.BasicAuth("anybody", reading.token), _bearer_auth(reading.token)):
        opened = client.get("/", auth=auth)
        # The application never sees the token.
        assert (opened.status_code, opened.json()) == (200, False)
    assert client.get("/", auth=("me", working.token)).status_code == 403
    assert client.get("/", auth=("me", "wrong")).status_code == 401
    for broken in ("Basic ?", "Basic " + base64.b64encode(b"\xff:x").decode(), "Digest x", "Basic"):
        assert client.get("/", headers={"Authorization": broken}).status_code == 401
    coordinator.delete(f"/api/v1/tokens/{reading.id}", headers=bearer(ADMIN_TOKEN))
    assert client.get("/", auth=("me", reading.token)).status_code == 200
    clock.now += 5.1
    assert client.get("/", auth=("me", reading.token)).status_code == 401


def test_the_door_opens_to_whoever_is_signed_in_to_the_study_page(
    coordinator: httpx.Client, door: tuple[httpx.Client, Clock]
) -> None:
    client, clock = door
    reading = make_token(coordinator, TokenScope.READ)
    with httpx.Client(base_url=coordinator.base_url) as browser:
        browser.post("/sign-in", data={"token": reading.token})
        (cookie,) = browser.cookies.jar
    shown = {"Cookie": f"other=1; {cookie.name}={cookie.value}"}
    for _ in range(2):
        opened = client.get("/", headers=shown)
        assert (opened.status_code, opened.json()) == (200, False)
    for wrong in (f"{cookie.name}={reading.token}", f"{cookie.name}=x", f"other={cookie.value}", "="):
        assert client.get("/", headers={"Cookie": wrong}).status_code == 401
    coordinator.delete(f"/api/v1/tokens/{reading.id}", headers=bearer(ADMIN_TOKEN))
    clock.now += 5.1
    assert client.get("/", headers=shown).status_code == 401


def _bearer_auth(token: str) -> Any:
    def add(request: httpx.Request) -> httpx.Request:
        request.headers.update(bearer(token))
        return request

    return add


def test_the_door_stays_shut_while_nobody_can_be_asked() -> None:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        raise AssertionError

    shut = TokenAuthMiddleware(application, "http://127.0.0.1:1")
    told: list[str] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        told.append(status)

    with closing(shut):
        (sentence,) = shut({"HTTP_AUTHORIZATION": "Bearer x"}, start_response)
    assert told == ["503 Service Unavailable"]
    assert b"try again" in sentence


def test_the_dashboard_listens_elsewhere_only_behind_tokens(database_url: str) -> None:
    elsewhere = ["dashboard", "--host", "0.0.0.0", "--database-url", database_url]  # noqa: S104 - refused
    ended = CliRunner().invoke(app, elsewhere)
    assert isinstance(ended.exception, InvalidInput)
    assert "has no login" in ended.exception.message


def test_a_token_for_reading_can_be_given_at_the_start(harness: Harness) -> None:
    with served(create_app(replace(harness.settings, read_token="for-prometheus"))) as client:
        assert client.get("/metrics", headers=bearer("for-prometheus")).status_code == 200
        refused = client.post("/api/v1/studies", headers=bearer("for-prometheus"), json={})
        assert refused.status_code == 403


def test_the_doctor_says_what_is_wrong_and_how_to_mend_it(
    coordinator: httpx.Client,
    database_url: str,
    cache_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def examine(token: str, root: Path) -> tuple[int, dict[str, dict[str, Any]], str]:
        monkeypatch.setenv("FOLDWISE_TOKEN", token)
        url = str(coordinator.base_url).rstrip("/")
        arguments = ["--json", "--url", url, "--cache-root", str(root), "--database-url", database_url]
        ended = CliRunner().invoke(app, ["doctor", *arguments])
        return ended.exit_code, {f["what"]: f for f in json.loads(ended.stdout)}, ended.stderr

    code, found, said = examine(ADMIN_TOKEN, cache_root)
    assert code == 0, said
    expected = {"foldwise", "coordinator", "token", "caches", "workers", "cache folder", "database", "schema"}
    assert expected <= found.keys()
    assert "tiny/ffffffffffff" in found["cache folder"]["found"]
    code, found, said = examine("wrong", tmp_path / "nowhere")
    assert code == 1
    assert not found["token"]["good"]
    assert not found["cache folder"]["good"]
    assert "BAD cache folder" in said
    assert "mount the volume" in said


def test_readyz_says_what_is_running(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDWISE_REVISION", "1f0c9d2")
    monkeypatch.setenv("FOLDWISE_IMAGE_DIGEST", "sha256:ab")
    with served(create_app(harness.settings)) as client:
        assert client.get("/readyz").json()["revision"] == "1f0c9d2@sha256:ab"
        monkeypatch.delenv("FOLDWISE_IMAGE_DIGEST")
        assert client.get("/readyz").json()["revision"] == "1f0c9d2"
        monkeypatch.delenv("FOLDWISE_REVISION")
        assert client.get("/readyz").json()["revision"] == revision_of_source(SOURCE)
