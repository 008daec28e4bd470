"""A report is drawn from stored data alone: its package loads no torch and no HTTP, and knows no client."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import report
from client.connection import Connection
from client.study_client import StudyClient
from report.material import StudySource

UNWANTED = (
    "torch",
    "httpx",
    "sqlalchemy",
    "fastapi",
    "worker",
    "coordinator",
    "client",
    "cli",
    "preprocessing",
)


def test_the_package_loads_nothing_that_trains_serves_or_asks() -> None:
    modules = [f"report.{module.name}" for module in pkgutil.iter_modules(report.__path__)]
    assert {"report.write", "report.architecture"} <= set(modules)
    code = f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    assert [name for name in loaded if name.partition(".")[0] in UNWANTED] == []


def test_the_client_is_a_source() -> None:
    # mypy holds the signatures.
    with Connection("http://localhost:1", "token", give_up_after=0) as connection:
        source: StudySource = StudyClient(connection)
    assert all(callable(getattr(source, name)) for name in vars(StudySource) if not name.startswith("_"))
