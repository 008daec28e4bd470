"""What `foldwise doctor` checks outside a cluster: this machine, a coordinator, a cache folder, a database."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from client.connection import Connection
from client.study_client import StudyClient
from services.clip_cache import list_caches
from services.errors import Conflict, FoldwiseError

OLDEST_POSTGRESQL = 140000
"""PostgreSQL 14, as `server_version_num` writes it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check."""

    what: str
    good: bool
    found: str
    fix: str | None = None
    """What to do about a problem; for a good finding, what could be better."""

    def as_json(self) -> dict[str, Any]:
        """The finding as `foldwise doctor --json` prints it."""
        return asdict(self)


def check_machine() -> Iterator[Finding]:
    """Report the versions of foldwise and Python, and whether each GPU that torch sees computes correctly."""
    yield Finding(
        what="foldwise", good=True, found=f"{version('foldwise')}, Python {platform.python_version()}"
    )
    if importlib.util.find_spec("torch") is not None:
        yield from _check_gpus()


def _check_gpus() -> Iterator[Finding]:
    import torch

    from worker.training.gpus import describe_gpu, find_problem, visible_gpus, why_no_gpu

    count = visible_gpus()
    if count == 0:
        why = why_no_gpu()
        found = why.cause if why.is_fault else f"none, workers train on the CPU: {why.cause}"
        yield Finding(what="gpu", good=not why.is_fault, found=found, fix=why.fix)
    for index in range(count):
        device = torch.device("cuda", index)
        problem = find_problem(device)
        yield Finding(
            what=f"gpu {device}",
            good=problem is None,
            found=f"{describe_gpu(device)}, computes correctly" if problem is None else problem.cause,
            fix=None if problem is None else problem.fix,
        )


def check_service(connection: Connection) -> Iterator[Finding]:
    """Check that a coordinator is ready and accepts the token, and that it has clip caches and workers."""
    try:
        answer = httpx.get(f"{connection.url}/readyz", timeout=10, trust_env=False)
        ready = answer.json()
        if not isinstance(ready, dict) or (answer.is_success and "version" not in ready):
            raise ValueError("its answer is not that of a coordinator")
    except (httpx.HTTPError, ValueError) as error:
        yield Finding(
            what="coordinator",
            good=False,
            found=f"no coordinator answers at {connection.url}: {error or type(error).__name__}",
            fix="start it, or correct --url; in a cluster, see `kubectl get pods` and the coordinator's log",
        )
        return
    if answer.status_code != httpx.codes.OK:
        yield Finding(
            what="coordinator",
            good=False,
            found=str(ready.get("detail", answer.status_code)),
            fix="check PostgreSQL and the coordinator's log",
        )
        return
    yield Finding(what="coordinator", good=True, found=f"{ready['version']} at {connection.url}")
    if ready.get("trouble"):
        yield Finding(
            what="leader",
            good=False,
            found=str(ready["trouble"]),
            fix="check the coordinator's log; another coordinator leads if you end the one that hangs",
        )
    if ready["version"] != version("foldwise"):
        yield Finding(
            what="versions",
            good=False,
            found=f"the coordinator is {ready['version']}, this program is {version('foldwise')}",
            fix="install the same version on both sides",
        )
    client = StudyClient(connection)
    try:
        studies, datasets, workers = client.studies(), client.datasets(), client.workers()
    except FoldwiseError as error:
        yield Finding(
            what="token", good=False, found=error.message, fix="use a token of the scope read or higher"
        )
        return
    yield Finding(what="token", good=True, found=f"can read; the coordinator has {len(studies)} studies")
    caches = ", ".join(f"{cache.dataset}/{cache.fingerprint[:12]}" for cache in datasets)
    yield Finding(
        what="caches",
        good=True,
        found=caches or "the coordinator has no clip cache yet",
        fix=None if datasets else "run `foldwise preprocess`, or list a dataset in preprocessing.datasets",
    )
    running = sorted(study.name for study in studies if study.state == "running")
    yield Finding(
        what="workers",
        good=bool(workers) or not running,
        found=f"{len(workers)} seen recently; running studies: {', '.join(running) or 'none'}",
        fix=None
        if workers or not running
        else "start workers; in a cluster, see `foldwise study workers STUDY`",
    )


def check_cache(root: Path) -> Finding:
    """Check that this process can read a folder of clip caches, and list them."""
    try:
        found = list_caches(root)
        list(root.iterdir())
    except (OSError, FoldwiseError) as error:
        return Finding(
            what="cache folder",
            good=False,
            found=f"{root} cannot be read: {error}",
            fix="mount the volume of the clip caches there, and let this user read it",
        )
    names = ", ".join(f"{manifest.dataset}/{manifest.fingerprint[:12]}" for manifest in found)
    return Finding(what="cache folder", good=True, found=f"{root}: {names or 'empty'}")


def check_database(url: str) -> Iterator[Finding]:
    """Check that a PostgreSQL database answers, is new enough, and has foldwise's schema."""
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    from coordinator.store.database import connect, first_line
    from coordinator.store.preparation import wait_for_schema

    engine = connect(url)
    try:
        with engine.connect() as connection:
            number = int(connection.scalar(text("SHOW server_version_num")) or 0)
        new_enough = number >= OLDEST_POSTGRESQL
        yield Finding(
            what="database",
            good=new_enough,
            found=f"PostgreSQL {number // 10000}",
            fix=None if new_enough else "use PostgreSQL 14 or newer",
        )
        wait_for_schema(engine, 0)
        yield Finding(what="schema", good=True, found="up to date")
    except SQLAlchemyError as error:
        yield Finding(
            what="database",
            good=False,
            found=first_line(error),
            fix="start PostgreSQL, or correct the URL",
        )
    except FoldwiseError as error:
        fix = "install the newer foldwise" if isinstance(error, Conflict) else "run `foldwise migrate`"
        yield Finding(what="schema", good=False, found=error.message, fix=fix)
    finally:
        engine.dispose()
