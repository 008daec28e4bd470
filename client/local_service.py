"""The service that `foldwise up` runs on this machine: where it announces itself, and how others find it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

SERVICE_FILE = "service.json"
"""Name of the file in the state folder, readable by its owner alone."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """What other processes on this machine need to reach a running service."""

    url: str
    admin_token: str
    worker_token: str
    database_url: str
    pid: int


def default_state() -> Path:
    """The state folder that is used unless another one is given: in the user's data folder."""
    return Path(platformdirs.user_data_dir("foldwise"))


def running_service(state: Path) -> Service | None:
    """The service that runs on this state folder now, or None."""
    try:
        service = Service(**json.loads((state / SERVICE_FILE).read_text(encoding="utf-8")))
        os.kill(service.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    return service
