"""Workers: when they were last seen, draining them, and the end of their pods."""

from __future__ import annotations

import re

import structlog
from sqlalchemy import (
    and_,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from coordinator.scheduling.leases import end_leases
from coordinator.store.conditions import seconds
from coordinator.store.tables import (
    LeaseRow,
    WorkerRow,
)
from services.contracts import (
    WorkerInfo,
)
from services.errors import (
    Conflict,
    NotFound,
)

log = structlog.get_logger()

WORKER_NAME_TTL_SECONDS = 100.0
"""Seconds without contact, over three heartbeats, after which a worker can be drained only by its id."""

LAST_SEEN_INTERVAL_SECONDS = 10.0
"""Seconds between two records of a worker's contact, so that a claim that waits for a fold writes nothing."""


def see_worker(session: Session, worker: WorkerInfo, pod_uid: str | None) -> None:
    """Record that a worker made contact, at most every `LAST_SEEN_INTERVAL_SECONDS`."""
    fresh = WorkerRow.last_seen > func.clock_timestamp() - seconds(LAST_SEEN_INTERVAL_SECONDS)
    if session.scalar(select(WorkerRow.id).where(WorkerRow.id == worker.id, fresh)) is not None:
        return
    known = insert(WorkerRow).values(id=worker.id, name=worker.name, device=worker.device, pod_uid=pod_uid)
    session.execute(
        known.on_conflict_do_update(
            index_elements=[WorkerRow.id], set_={"last_seen": func.clock_timestamp(), "name": worker.name}
        )
    )


def drain(session: Session, worker: str, *, now: bool) -> None:
    """Drain a worker: it ends after the fold that it runs, or at once. Repeating it changes nothing.

    Args:
        session: the caller's open transaction.
        worker: its id, or its name if only one worker of this name made contact recently.
        now: whether it releases its fold instead of finishing it.

    Raises:
        NotFound: there is no such worker.
        Conflict: several workers have this name.
    """
    recent = WorkerRow.last_seen > func.clock_timestamp() - seconds(WORKER_NAME_TTL_SECONDS)
    by_name = and_(WorkerRow.name == worker, recent)
    found = session.scalars(select(WorkerRow).where(or_(WorkerRow.id == worker, by_name))).all()
    if not found:
        raise NotFound(f"there is no worker {worker!r}; `foldwise workers list` shows them", field="worker")
    if len(found) > 1:
        ids = ", ".join(row.id for row in found)
        raise Conflict(f"there are {len(found)} workers {worker!r}; name one by its id: {ids}", field="worker")
    found[0].drain = "now" if now else "after"
    log.info("worker_drained", worker=found[0].name, now=now)


def end_worker(session: Session, name: str, pod_uid: str, *, disrupted: bool) -> int:
    """End the leases of the workers whose pod is gone, and return their number.

    The worker has the name of its pod; those of a pod with several GPUs have that name, a hyphen and a number.

    If the pod was taken away (`disrupted`), its fold is released. If it crashed, its lease is recorded as
    expired, so that a fold that crashes its workers eventually fails.
    """
    # Kubernetes ends the names of a Job's pods with five characters, so no other pod has such a name.
    named = WorkerRow.name.regexp_match(rf"^{re.escape(name)}(-\d{{1,3}})?$")
    of_pod = select(WorkerRow.id).where(
        or_(WorkerRow.pod_uid == pod_uid, and_(WorkerRow.pod_uid.is_(None), named))
    )
    theirs = LeaseRow.worker_id.in_(of_pod)
    live = session.scalars(select(LeaseRow.id).where(theirs, LeaseRow.outcome.is_(None))).all()
    if disrupted:
        end_leases(session, theirs, "released")
    elif live:
        # The leader's next round ends them as expired.
        session.execute(
            update(LeaseRow)
            .where(LeaseRow.id.in_(live), LeaseRow.outcome.is_(None))
            .values(expires_at=func.clock_timestamp())
        )
    return len(live)
