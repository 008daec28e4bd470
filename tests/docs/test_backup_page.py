"""The commands of docs/backup.md back up and restore, typed as they stand there."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from cli.local.embedded_postgres import embedded_postgres
from cli.local.migrate import bring_up_to_date
from cli.local.postgres_account import NEWEST, programs_for
from tests.harness.documented_commands import PROJECT, shell_blocks, type_blocks

PAGE = "docs/backup.md"
PROGRAMS = f"{Path(sys.executable).parent}:{programs_for(Path('/nowhere'))}"


def blocks_with(words: str) -> list[str]:
    """Shell blocks that contain these words, also those in a list."""
    found = re.findall(r"^ *```sh\n(.*?)^ *```$", (PROJECT / PAGE).read_text(), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found if words in block]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{PROGRAMS}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def add_mark(url: str) -> None:
    bring_up_to_date(url, reader_url=None, wait_seconds=0)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO foldwise.deleted_studies VALUES ('mark')"))
    engine.dispose()


def marks(url: str) -> list[str]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = list(connection.execute(text("SELECT name FROM foldwise.deleted_studies")).scalars())
    engine.dispose()
    return found


def test_one_machine(tmp_path: Path, environment: dict[str, str]) -> None:
    environment["XDG_DATA_HOME"] = str(tmp_path)
    (tmp_path / "foldwise").mkdir(mode=0o755)
    with embedded_postgres(tmp_path / "foldwise" / "postgres") as server:
        engine = create_engine(server.url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE kept AS SELECT 'mark' AS name"))
        engine.dispose()
    type_blocks(shell_blocks(PAGE), environment)
    with embedded_postgres(tmp_path / "restored" / "postgres") as server:
        engine = create_engine(server.url)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT name FROM kept")) == "mark"
        engine.dispose()


def test_a_database_of_your_own(postgres: str, tmp_path: Path, environment: dict[str, str]) -> None:
    server = create_engine(postgres, isolation_level="AUTOCOMMIT")
    urls = []
    with server.connect() as connection:
        for name in ("backed_up", "empty"):
            connection.execute(text(f"CREATE DATABASE {name}"))
            urls.append(make_url(postgres).set(database=name, drivername="postgresql"))
        connection.execute(text("CREATE ROLE backup_reader LOGIN PASSWORD 'x'"))
    old, new = (url.set(drivername="postgresql+psycopg").render_as_string() for url in urls)
    reader = urls[1].set(username="backup_reader", password="x").render_as_string(hide_password=False)
    add_mark(old)
    bring_up_to_date(old, reader_url=reader, wait_seconds=0)
    environment |= {
        "BACKUPS": str(tmp_path),
        "DATABASE_URL": urls[0].render_as_string(),
        "NEW_DATABASE_URL": urls[1].render_as_string(),
    }
    blocks = blocks_with("$BACKUPS")
    assert len(blocks) == 2
    type_blocks(blocks, environment)
    assert marks(new) == ["mark"]
    # As the next upgrade of the release does.
    bring_up_to_date(new, reader_url=reader, wait_seconds=0)
    theirs = create_engine(reader.replace("postgresql:", "postgresql+psycopg:"))
    with theirs.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM studies")) == 0
    theirs.dispose()
    with server.connect() as connection:
        for name in ("backed_up", "empty"):
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        connection.execute(text("DROP ROLE backup_reader"))
    server.dispose()


def test_the_programs_are_of_the_version_that_the_chart_runs() -> None:
    assert (
        f"/var/lib/postgresql/{NEWEST}/docker"
        in (PROJECT / "helm/foldwise/templates/postgresql.yaml").read_text()
    )
