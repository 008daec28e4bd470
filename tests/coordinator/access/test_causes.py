"""Why the database did not serve a request is said to its sender, and once a second to the log."""

from __future__ import annotations

import asyncio

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from structlog.testing import capture_logs

from coordinator.access import causes
from coordinator.access.problems import add_handlers
from tests.harness.coordinator_harness import Harness


def app_that_raises(error: Exception) -> httpx.AsyncClient:
    app = FastAPI()
    add_handlers(app, lambda request, problem: pytest.fail("no page was asked for"))

    @app.get("/")
    async def fails() -> None:
        raise error

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.fixture(autouse=True)
def nothing_logged_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causes, "_logged_at", -1e9)
    monkeypatch.setattr(causes, "_not_logged", 0)


async def ask(error: Exception, times: int = 1) -> httpx.Response:
    async with app_that_raises(error) as client:
        for _ in range(times):
            answer = await client.get("/")
    return answer


def run(error: Exception, times: int = 1) -> httpx.Response:
    return asyncio.run(ask(error, times))


@pytest.mark.parametrize(
    ("orig", "words"),
    [
        (psycopg.errors.DiskFull("could not extend file"), "the database's disk is full; retry later"),
        (
            psycopg.errors.QueryCanceled("canceling statement"),
            "the database took too long to answer; retry later",
        ),
        (psycopg.OperationalError("connection refused"), "the database does not answer; retry later"),
    ],
)
def test_the_sender_reads_the_kind_of_cause_and_the_log_has_its_words(orig: psycopg.Error, words: str) -> None:
    with capture_logs() as logs:
        answer = run(OperationalError("INSERT", {}, orig))
    assert (answer.status_code, answer.json()["detail"]) == (503, words)
    assert [entry["cause"] for entry in logs] == [str(orig)]


def test_a_thousand_failures_are_a_line_in_the_log() -> None:
    with capture_logs() as logs:
        run(OperationalError("SELECT 1", {}, psycopg.OperationalError("connection refused")), times=1000)
        causes._logged_at = -1e9
        run(OperationalError("SELECT 1", {}, psycopg.OperationalError("connection refused")))
    assert logs[0]["cause"] == "connection refused"
    assert len(logs) < 20
    assert sum(entry["not_logged_before"] + 1 for entry in logs) == 1001


def test_a_wrong_statement_is_an_error_of_ours() -> None:
    assert run(ProgrammingError("SELEC", {}, psycopg.errors.SyntaxError("syntax error"))).status_code == 500


def test_a_session_that_the_database_ended_is_told_as_unavailable(harness: Harness) -> None:
    with harness.sessions() as session, pytest.raises(DBAPIError) as caught:
        session.connection().exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
    assert run(caught.value).status_code == 503
