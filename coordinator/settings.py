"""The settings of a coordinator process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class CoordinatorSettings:
    """Set once when the process starts; nothing is read from the environment later."""

    database_url: str
    """SQLAlchemy URL, such as `postgresql://user:password@host/name`."""

    cache_root: Path
    """Folder of the clip caches."""

    admin_token: str
    """Token that may do everything."""

    worker_token: str | None
    """Token that may claim folds and use its own leases; None where each worker has its own token."""

    read_token: str | None = None
    """Token that may read everything, for monitoring; None where such programs have their own tokens."""

    models_root: Path | None = None
    """Folder of the model catalogue, for studies that start from one of its models."""

    worker_template: str | None = None
    """Name of the chart's ConfigMap with the Job of a study's workers; None where people start workers."""

    dashboard_url: str | None = None
    """URL of Optuna's dashboard of this database, to which the study page links."""

    lease_seconds: float = 90.0
    """Seconds after its last renewal at which a lease expires."""

    heartbeat_seconds: float = 30.0
    """Seconds between two heartbeats of a worker; with a third of the lease it survives two lost messages."""

    stall_seconds: float = 600.0
    """Seconds without a new training step after which a lease is not renewed: the training loop hangs."""

    ask_ahead: int = 2
    """Trials kept ready for each running study, so that no worker waits for the sampler."""

    leader_interval: float = 0.5
    """Seconds between two rounds of the leader if nothing wakes it."""

    projection_seconds: float = 2.0
    """Seconds between two projections of a study's open trials to Optuna; ended ones are projected at once."""

    token_seconds: float = 5.0
    """Seconds after which a token of the database is looked up again, so that a revocation takes effect."""

    requests_per_second: float = 500.0
    """Maximum rate per token and address; a burst may have twice as many. 0: unlimited."""

    guesses_per_minute: float = 60.0
    """Maximum rate of unknown tokens per address; a burst may have as many. 0: unlimited."""
