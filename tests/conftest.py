"""Fixtures of more than one package: a real PostgreSQL, a small real clip cache, a coordinator over HTTP."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from cli.local.embedded_postgres import embedded_postgres
from coordinator.settings import CoordinatorSettings
from coordinator.store.database import connect, migrate
from tests.harness.tiny_cache import write_tiny_cache

if TYPE_CHECKING:
    # Fixtures import what takes seconds: most tests need neither Optuna nor FastAPI.
    import httpx
    from fastapi import FastAPI

    from tests.harness.coordinator_harness import Harness

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of one test process that wait, spinning, for a core that another one has make both many times
    # slower. OpenMP reads it when torch is first imported; programs that tests start have it too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tmp_path_factory(tmp_path_factory: pytest.TempPathFactory) -> pytest.TempPathFactory:
    """Temporary folders that other users can reach: the server of root's PostgreSQL runs as one."""
    if os.geteuid() == 0:
        make = tmp_path_factory.mktemp

        def mktemp(basename: str, numbered: bool = True) -> Path:
            folder = make(basename, numbered)
            folder.chmod(0o755)
            return folder

        base = tmp_path_factory.getbasetemp()
        for folder in (base, *base.parents):
            if Path(tempfile.gettempdir()).resolve() in folder.parents:
                folder.chmod(0o755)
        tmp_path_factory.mktemp = mktemp  # type: ignore[method-assign]
    return tmp_path_factory


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a server with a migrated database named `template`."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        server = stack.enter_context(embedded_postgres(folder / "data"))
        url = server.url
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
    with _fresh_database(postgres) as url:
        yield url


@contextmanager
def _fresh_database(postgres: str) -> Iterator[str]:
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
def harness(engine: Engine, cache_root: Path) -> Harness:
    """A coordinator without HTTP that projects nothing into Optuna's tables; see `projection`."""
    from tests.harness.coordinator_harness import Harness, LeaderWithoutOptuna

    harness = Harness(engine, cache_root)
    harness.leader = LeaderWithoutOptuna(engine, harness.settings)
    return harness


@pytest.fixture
def projection(harness: Harness) -> None:
    """Let the leader project studies into Optuna's tables, three quarters of a short test's time."""
    from tests.harness.coordinator_harness import SteppedLeader

    harness.leader = SteppedLeader(harness.engine, harness.settings)


@pytest.fixture
def settings(database_url: str, cache_root: Path) -> CoordinatorSettings:
    """Of a coordinator that looks for work often, looks up every token, and limits nobody."""
    return _settings(database_url, cache_root)


def _settings(database_url: str, cache_root: Path) -> CoordinatorSettings:
    from tests.harness.served_app import ADMIN_TOKEN, WORKER_TOKEN

    return CoordinatorSettings(
        database_url=database_url,
        cache_root=cache_root,
        admin_token=ADMIN_TOKEN,
        worker_token=WORKER_TOKEN,
        token_seconds=0.0,
        requests_per_second=0,
        guesses_per_minute=0,
        leader_interval=0.05,
    )


@pytest.fixture
def app(settings: CoordinatorSettings) -> FastAPI:
    from coordinator.app import create_app

    return create_app(settings)


@pytest.fixture
def client(app: FastAPI) -> Iterator[httpx.Client]:
    """A client without a token of `app`, which runs on a real socket."""
    from tests.harness.served_app import served

    with served(app) as client:
        yield client


@pytest.fixture(scope="module")
def shared_client(postgres: str, cache_root: Path) -> Iterator[httpx.Client]:
    """Like `client`, of one coordinator for all tests of a module that change nothing another one sees."""
    from coordinator.app import create_app
    from tests.harness.served_app import served

    with _fresh_database(postgres) as url, served(create_app(_settings(url, cache_root))) as client:
        yield client


def _run(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
