"""Copies of the project's packages, for tests that change code."""

from __future__ import annotations

import shutil
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

PACKAGES = tuple(sorted(path.parent.name for path in PROJECT.glob("*/__init__.py")))
"""Names of all packages of the project; the tests are none."""


def copy_package(package: str, folder: Path) -> None:
    """Copy a package, or the tests, into an existing folder, without its compiled files."""
    shutil.copytree(PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
