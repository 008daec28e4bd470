"""What a coordinator process is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class CoordinatorSettings:
    """Given once at the start; nothing is read from the environment later."""

    database_url: str
    """SQLAlchemy URL, such as `postgresql://user:password@host/name`."""

    cache_root: Path
    """Folder of the clip caches."""

    admin_token: str
    """May do everything."""

    worker_token: str | None
    """May claim folds and speak of its own leases, nothing else; None where every worker has its own."""

    read_token: str | None = None
    """May read everything, for programs that watch; None where they have tokens of their own."""

    models_root: Path | None = None
    """Folder of the model catalogue, for studies that start from one of its models."""

    worker_template: str | None = None
    """ConfigMap of the chart with the Job of a study's workers; None where people start workers."""

    dashboard_url: str | None = None
    """Where people reach Optuna's dashboard of this database; the study page links to it."""

    lease_seconds: float = 90.0
    """A lease that is not renewed for so long lapses."""

    heartbeat_seconds: float = 30.0
    """How often a worker should renew; a third of the lease survives two lost messages."""

    stall_seconds: float = 600.0
    """A worker whose step counter stands still for so long is not renewed: its training loop hangs."""

    ask_ahead: int = 2
    """Trials kept ready per running study, so that no worker waits for the sampler."""

    leader_interval: float = 0.5
    """Seconds between two rounds of the leader when nothing wakes it."""

    projection_seconds: float = 2.0
    """Optuna hears of a study's trials under way no more often; of one that ended at once."""

    token_seconds: float = 5.0
    """A token of the database is looked up again after so long: a revocation counts everywhere by then."""

    requests_per_second: float = 500.0
    """Of one token from one address; twice as many in one go. 0 is no limit."""

    guesses_per_minute: float = 60.0
    """Unknown tokens from one address, and as many in one go. 0 is no limit."""
