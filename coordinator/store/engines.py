"""The database connections of a coordinator: a pool for each kind of work, so that none waits for another."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sqlalchemy import Engine

from coordinator.store.database import connect

PROBE_SECONDS = 4.0
"""Seconds to wait for an answer that tells whether the database is well, who leads, or who sends a request."""

LEADER_LOCK_SECONDS = 1.0
"""Seconds that the leader waits for a lock of another transaction, before it does something else."""


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The pools, 19 connections at most."""

    requests: Engine
    """For requests, and for events and exports, which take long."""

    leader: Engine
    """For the leader's threads: each reads with one connection and writes with another."""

    elections: Engine
    tokens: Engine
    """For finding out who sends a request."""

    probes: Engine
    """For readiness."""

    metrics: Engine

    def dispose(self) -> None:
        """Close all connections."""
        for field in fields(self):
            getattr(self, field.name).dispose()


def connect_all(url: str) -> Engines:
    """The pools of one coordinator; none connects before it is used.

    Raises:
        InvalidInput: `url` is not the URL of a PostgreSQL.
    """

    def probing(connections: int) -> Engine:
        return connect(url, connections=connections, overflow=0, answer_seconds=PROBE_SECONDS)

    return Engines(
        requests=connect(url),
        leader=connect(url, connections=2, overflow=2, lock_seconds=LEADER_LOCK_SECONDS),
        elections=probing(1),
        tokens=probing(2),
        probes=probing(2),
        metrics=connect(url, connections=1, overflow=1),
    )
