"""The worker of an earlier commit with today's coordinator, and the reverse, finish a study together.

`PREVIOUS` holds the commit: that of the last release, or one before the latest change of what both say.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, make_url, text

from services.clip_cache import MANIFEST, READABLE_VERSIONS
from tests.harness.documented_commands import PROJECT
from tests.harness.served_app import ADMIN_TOKEN, WORKER_TOKEN, bearer
from tests.harness.tiny_cache import write_tiny_cache

TIMEOUT_SECONDS = 120.0

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code of the commit in `PREVIOUS`."""
    commit = (Path(__file__).parent / "PREVIOUS").read_text().strip()
    git = shutil.which("git")
    if git is None:
        pytest.skip("there is no git")
    folder = tmp_path_factory.mktemp("previous")
    known = [git, "-C", str(PROJECT), "cat-file", "-e", f"{commit}^{{commit}}"]
    if subprocess.run(known, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"commit {commit[:12]} is not in this clone; fetch the whole history")
    archive = folder / "code.tar"
    subprocess.run([git, "-C", str(PROJECT), "archive", "--output", str(archive), commit], check=True)
    shutil.unpack_archive(archive, folder / "code", filter="data")
    return folder / "code"


@pytest.fixture
def empty_database(postgres: str) -> Iterator[str]:
    server = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("CREATE DATABASE versions"))
    yield make_url(postgres).set(database="versions").render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE versions WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    """A folder of caches that both can read: of the oldest format that is read today."""
    write_tiny_cache(tmp_path / "caches")
    (manifest,) = tmp_path.glob(f"caches/*/*/{MANIFEST}")
    given = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**given, "format_version": min(READABLE_VERSIONS)}))
    return tmp_path / "caches"


@contextmanager
def running(code: Path, log: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `foldwise` process of the code in this folder."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=code,
            env={**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def wait_for_port(log: Path, url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)


@pytest.mark.parametrize("newer", ["coordinator", "worker"])
def test_they_finish_a_study_together(
    newer: str, previous: Path, empty_database: str, caches: Path, tmp_path: Path, unused_port: int
) -> None:
    coordinator_code, worker_code = (PROJECT, previous) if newer == "coordinator" else (previous, PROJECT)
    url = f"http://127.0.0.1:{unused_port}"
    cache_root = ["--cache-root", str(caches)]
    with running(
        coordinator_code,
        tmp_path / "coordinator.log",
        *("coordinator", "--port", str(unused_port), "--database-url", empty_database, *cache_root),
        FOLDWISE_ADMIN_TOKEN=ADMIN_TOKEN,
        FOLDWISE_WORKER_TOKEN=WORKER_TOKEN,
    ) as coordinator:
        wait_for_port(tmp_path / "coordinator.log", url, coordinator)
        training = {
            "frames": 2,
            "frame_size": 16,
            "width": 1,
            "batch_size": 16,
            "epochs": 2,
            "augmentation": {},
        }
        spec = {
            "name": "s",
            "cache": "tiny",
            "trials": 2,
            "protocol": {"kind": "kfold", "k": 2},
            "space": {"dropout": {"low": 0.0, "high": 1.0}},
            "training": training,
        }
        created = httpx.post(f"{url}/api/v1/studies", headers=bearer(ADMIN_TOKEN), json=spec, trust_env=False)
        assert created.status_code == 201, created.text
        worker_log = tmp_path / "worker.log"
        arguments = ["worker", "--url", url, "--study", "s", "--threads", "1", *cache_root]
        with running(worker_code, worker_log, *arguments, FOLDWISE_TOKEN=WORKER_TOKEN) as worker:
            assert worker.wait(TIMEOUT_SECONDS) == 0, worker_log.read_text()
        study = httpx.get(f"{url}/api/v1/studies/s", headers=bearer(ADMIN_TOKEN), trust_env=False).json()
        assert (study["state"], study["folds_done"], study["trials"]["complete"]) == ("complete", 4, 2)
        for code in (previous, PROJECT):
            shown = subprocess.run(
                [sys.executable, "-m", "cli.main", "study", "show", "s", "--url", url],
                cwd=code,
                env={**os.environ, "PYTHONPATH": str(code), "FOLDWISE_TOKEN": ADMIN_TOKEN},
                capture_output=True,
                text=True,
                check=False,
            )
            assert shown.returncode == 0, shown.stderr
            assert "study s is complete" in shown.stdout


@pytest.fixture
def unused_port() -> int:
    from cli.local.ports import bind

    with bind("127.0.0.1", 0) as listener:
        port: int = listener.getsockname()[1]
    return port
