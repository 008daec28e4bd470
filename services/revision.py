"""The revision of the running code, which is stored with a result."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
"""Folder of the packages: the project's, or the one that they are installed in."""

_GIT_SECONDS = 10
"""Seconds to wait for git, which compares every file of a checkout with its index."""


def running_revision() -> str:
    """The revision of an image, or else of the git checkout, or else the version of the package.

    An image has `FOLDWISE_REVISION`, set when it is built, and `FOLDWISE_IMAGE_DIGEST`, set when it is run,
    joined by `@`, as in `1f0c9d2@sha256:...`. A checkout has what `git describe --always --dirty` says, such as
    `1f0c9d2-dirty`, asked once per process.
    """
    known = [os.environ.get("FOLDWISE_REVISION"), os.environ.get("FOLDWISE_IMAGE_DIGEST")]
    return "@".join(part for part in known if part) or revision_of_source(SOURCE)


@cache
def revision_of_source(folder: Path) -> str:
    """The git description of a checkout; the version of the package if `folder` is none or git cannot say."""
    # A folder inside somebody else's checkout, such as that of a virtual environment, is none.
    return (_described_by_git(folder) if (folder / ".git").exists() else None) or _package_version()


def _described_by_git(checkout: Path) -> str | None:
    # Inside a hook of git, variables name the repository that the hook is about.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            # Without locks, so that a checkout that others use, or that is read-only, stays as it is.
            ["git", "--no-optional-locks", "describe", "--always", "--dirty"],  # noqa: S607 - the user's git
            cwd=checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _package_version() -> str:
    try:
        return version("foldwise")
    except PackageNotFoundError:
        return "unknown"
