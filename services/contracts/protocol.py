"""Versions of the protocol between worker and coordinator: what both sides must agree on.

A worker sends its version with its claims and results. Additions that the other side may ignore keep the
version, such as new fields of replies and new routes. Everything else raises it, above all a new field of a
task that changes a fold's result: a worker that ignored the field would train something else.
"""

from __future__ import annotations

from services.errors import WorkerTooNew, WorkerTooOld

PROTOCOL = 2
"""The version that this program speaks, as worker and as coordinator.

Version 2 has validation clips and the protocols of a dataset's own split.
"""

VALIDATION_CLIPS = 2
"""The oldest version of a worker that knows validation clips, which older ones would train on, and a dataset's
own split, which older ones cannot read in a task."""

BEFORE_VERSIONS = 0
"""The version of workers that send none."""

OLDEST_WORKER = BEFORE_VERSIONS
"""The oldest version of a worker that this coordinator grants leases to."""

PROTOCOL_HEADER = "Foldwise-Protocol"
"""Header with a worker's version; a coordinator from before versions ignores it."""

THREADS_HEADER = "Foldwise-Threads"
"""Header of a claim with the CPU threads of the worker; one that sends it follows the memory format and threads
of its task. A coordinator from before plans were frozen ignores it."""


def supports(version: int) -> bool:
    """Whether this coordinator grants leases to a worker of this version."""
    return OLDEST_WORKER <= version <= PROTOCOL


def check_worker_version(version: int) -> None:
    """Refuse a worker that this coordinator would misunderstand, before it gets a lease.

    Raises:
        WorkerTooOld, WorkerTooNew: the worker must be of another version.
    """
    known = f"version {version} of the protocol, this coordinator {OLDEST_WORKER} to {PROTOCOL}"
    if version < OLDEST_WORKER:
        raise WorkerTooOld(
            f"this worker speaks {known}; run workers of the coordinator's version, in Kubernetes with "
            "`foldwise study resume`, which starts a Job with the new image"
        )
    if version > PROTOCOL:
        raise WorkerTooNew(
            f"this worker speaks {known}; upgrade the coordinator, or run workers of its version"
        )
