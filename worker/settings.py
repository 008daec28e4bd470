"""What a worker process is started with."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from client.connection import Token


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Given once at the start."""

    url: str
    """Of the coordinator, such as `http://127.0.0.1:8000`."""

    token: Token
    cache_root: Path
    """Folder of the clip caches, read-only is enough."""

    models_root: Path | None = None
    """Folder of the model catalogue, for studies that start from one of its models."""

    measurements: Path | None = None
    """File that keeps what was measured of this device; None measures anew in every process."""

    alive_file: Path | None = None
    """Touched whenever the worker gets on: a probe of its age finds one that hangs."""

    study: str | None = None
    """Only folds of this study, and end when it is over; None: folds of any study, for ever."""

    name: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    device: str | None = None
    """A torch device such as `cuda:0` or `cpu`; None takes a GPU where there is one."""

    threads: int | None = None
    """CPU threads for training; None leaves torch's own choice."""

    give_up_after: float = 600.0
    """Seconds of a coordinator that cannot be reached, before the worker ends and lets others try."""
