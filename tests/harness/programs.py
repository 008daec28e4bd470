"""Programs that come as wheels: they lie beside the Python that runs the tests."""

from __future__ import annotations

import shutil
import sysconfig


def program(name: str) -> str:
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    assert path is not None, f"{name} is not installed; run `make venv`"
    return path
