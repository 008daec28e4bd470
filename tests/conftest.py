"""Fixtures that more than one kind of test needs: a real PostgreSQL, a small real clip cache."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from cli.local.embedded_postgres import embedded_postgres
from coordinator.store.database import connect, migrate
from tests.harness.coordinator_harness import Desk
from tests.harness.tiny_cache import write_tiny_cache

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of one test process that wait, spinning, for a core that another one has make both many times
    # slower. OpenMP reads it when torch is first imported; programs that tests start have it too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server with a migrated database named `template`."""
    with embedded_postgres(tmp_path_factory.mktemp("pg") / "data") as url:
        # Its data need not outlive the machine; waiting for the disk was much of the time of many tests.
        _run(url, "ALTER SYSTEM SET fsync = off")
        _run(url, "SELECT pg_reload_conf()")
        _run(url, "CREATE DATABASE template")
        engine = connect(str(make_url(url).set(database="template").render_as_string(hide_password=False)))
        migrate(engine)
        engine.dispose()
        yield url


@pytest.fixture
def database_url(postgres: str) -> Iterator[str]:
    """URL of a fresh, migrated database."""
    name = f"test_{uuid.uuid4().hex}"
    _run(postgres, f"CREATE DATABASE {name} TEMPLATE template")
    yield make_url(postgres).set(database=name).render_as_string(hide_password=False)
    _run(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one cache `tiny`: 5 subjects x 2 classes, 2 frames of 16 x 16."""
    root = tmp_path_factory.mktemp("caches")
    write_tiny_cache(root)
    return root


@pytest.fixture
def broken_cache_root(tmp_path: Path) -> Path:
    """A root with one cache `tiny` whose arrays are cut off."""
    write_tiny_cache(tmp_path, fingerprint="e" * 64)
    arrays = tmp_path / "tiny" / ("e" * 64) / "clips.npy"
    arrays.write_bytes(arrays.read_bytes()[:100])
    return tmp_path


@pytest.fixture
def desk(engine: Engine, cache_root: Path) -> Desk:
    return Desk(engine, cache_root)


def _run(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
