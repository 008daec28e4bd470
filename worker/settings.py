"""Settings of a worker process."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from client.connection import Token


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Set once, at the start of the process."""

    url: str
    """Address of the coordinator, such as `http://127.0.0.1:8080`."""

    token: Token
    cache_root: Path
    """Folder of the clip caches; read access is enough."""

    models_root: Path | None = None
    """Folder of the model catalogue: to start from its models, and to add models if it can be written."""

    alive_file: Path | None = None
    """File touched on every claim and optimiser step, at most every few seconds, for a liveness probe."""

    study: str | None = None
    """Run only folds of this study and stop when it is over; None runs folds of any study without end."""

    name: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    device: str | None = None
    """A torch device such as `cuda:0` or `cpu`; None takes the first GPU, or else the CPU."""

    require_gpu: bool = False
    """Whether the worker must not train on the CPU."""

    threads: int | None = None
    """CPU threads for studies that have no plan yet; None takes that of the table in `compute_plans`."""

    give_up_after: float = 600.0
    """Seconds without an answer from the coordinator after which the worker stops."""
