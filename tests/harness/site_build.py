"""Builds the documentation's site as `make docs` does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def build_site(destination: Path, config: Path = PROJECT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """Build the site of a mkdocs.yml into a folder; its standard error names each broken link."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(destination)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
