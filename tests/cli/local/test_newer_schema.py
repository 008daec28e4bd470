"""A database that a newer foldwise has migrated is refused in one sentence by every command that opens it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from cli.local.dashboard import wait_for_tables
from cli.local.embedded_postgres import embedded_postgres
from cli.local.migrate import bring_up_to_date
from tests.acceptance.up import foldwise_here

SENTENCE = re.compile(
    r"foldwise: (the coordinator did not start: )?the database's schema has revision 0099, this program knows "
    r"revisions up to \d{4}: run the newer foldwise again, or restore the database from before its upgrade"
    r"(; see \S+)?\n"
)


def make_newer(url: str) -> None:
    bring_up_to_date(url, reader_url=None, wait_seconds=0)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.schema_version SET version_num = '0099'"))
    engine.dispose()


@pytest.fixture(scope="module")
def newer_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder whose database is that of a newer foldwise."""
    state = tmp_path_factory.mktemp("newer")
    with embedded_postgres(state / "postgres") as server:
        make_newer(server.url)
    yield state
    with embedded_postgres(state / "postgres") as server:
        engine = create_engine(server.url)
        with engine.connect() as connection:
            found = connection.scalar(text("SELECT version_num FROM foldwise.schema_version"))
        engine.dispose()
    assert found == "0099", "nothing was changed"


@pytest.fixture(scope="module")
def newer_database(postgres: str) -> str:
    """The database of a newer foldwise; no test changes it."""
    server = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("CREATE DATABASE newer TEMPLATE template"))
    server.dispose()
    url = make_url(postgres).set(database="newer").render_as_string(hide_password=False)
    make_newer(url)
    return url


@pytest.mark.parametrize(
    "command",
    [
        ["coordinator", "--cache-root", ".", "--port", "0"],
        ["coordinator", "--cache-root", ".", "--port", "0", "--no-migrate"],
        ["migrate"],
        ["migrate", "--wait-seconds", "5"],
        ["dashboard", "--port", "0"],
    ],
    ids=" ".join,
)
def test_a_command_refuses_a_newer_database(
    command: list[str], newer_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDWISE_ADMIN_TOKEN", "a" * 20)
    run = foldwise_here(*command, "--database-url", newer_database)
    assert (run.returncode, SENTENCE.fullmatch(run.stderr) is not None) == (1, True), run.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["up", "--port", "0", "--workers", "0"],
        ["dashboard", "--port", "0"],
        pytest.param(["demo"], marks=pytest.mark.long),
    ],
    ids=" ".join,
)
def test_a_command_refuses_a_newer_state_folder(command: list[str], newer_state: Path) -> None:
    run = foldwise_here(*command, "--state", str(newer_state))
    assert (run.returncode, SENTENCE.fullmatch(run.stderr) is not None) == (1, True), run.stderr


def test_the_doctor_names_a_newer_database(newer_database: str) -> None:
    run = foldwise_here("doctor", "--database-url", newer_database)
    assert "schema has revision 0099, this program knows" in run.stdout
    assert "run the newer foldwise again" in run.stdout
    assert "foldwise migrate" not in run.stdout


def set_optuna_version(url: str, version: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    engine.dispose()


def test_tables_of_another_optuna_are_refused_or_upgraded(database_url: str) -> None:
    bring_up_to_date(database_url, reader_url=None, wait_seconds=0)
    set_optuna_version(database_url, "v99.0.0.a")
    elsewhere = ["--host", "0.0.0.0", "--port", "0", "--url", "http://127.0.0.1:1"]  # noqa: S104 - refused
    words = r"foldwise: the database has version {} of Optuna's tables, this program knows v[\w.]+: {}\n"
    for command, advice in (
        (["migrate"], "run the newer foldwise again, .+"),
        (["dashboard", "--port", "0"], "run the newer foldwise again, .+"),
        (["dashboard", *elsewhere], "run the dashboard of the foldwise that migrated the database"),
    ):
        run = foldwise_here(*command, "--database-url", database_url)
        assert run.returncode == 1
        assert re.fullmatch(words.format(r"v99\.0\.0\.a", advice), run.stderr), run.stderr
    set_optuna_version(database_url, "v3.0.0.d")
    run = foldwise_here("dashboard", *elsewhere, "--database-url", database_url)
    assert re.fullmatch(words.format(r"v3\.0\.0\.d", "run `foldwise migrate`"), run.stderr), run.stderr
    run = foldwise_here("migrate", "--database-url", database_url)
    assert run.returncode == 0, run.stderr
    storage = wait_for_tables(database_url)
    assert storage.get_current_version() == storage.get_head_version()
    storage.engine.dispose()
