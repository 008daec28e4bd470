"""Studies in a list, their folds and workers, and their pace: a few rows, however large the studies are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Float, case, extract, func, or_, select, tuple_
from sqlalchemy.orm import Session

from coordinator.store.conditions import among, seconds
from coordinator.store.studies import study_split
from coordinator.store.tables import (
    EventRow,
    LeaseRow,
    ResultRow,
    StudyRow,
    TrialRow,
    WorkerRow,
)
from services.contracts import EventKind, StudyState, TrialState

MEASURABLE_SECONDS = 1e-3
"""Seconds of a fold below which a worker has no speed."""

RECENT_TRIALS = 64
"""Newest trials of a study in which the last fold of each worker is looked for."""


@dataclass(frozen=True, kw_only=True)
class ListedStudy:
    """A study in a list."""

    name: str
    state: StudyState
    dataset: str
    folds: int
    budget: int
    counts: dict[TrialState, int]
    best: float | None
    """Highest pooled accuracy of a complete trial."""

    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class StudyFold:
    """A fold of a study: its name, and the number of clips that it tests."""

    name: str
    clips: int


@dataclass(frozen=True, kw_only=True)
class StudyWorker:
    """A worker that has run folds of a study recently, or could run some."""

    name: str
    device: str
    seconds_since_seen: float
    draining: bool
    trial: int | None
    """Number of the study's trial of which it holds a fold."""

    fold: int | None
    epoch: int | None
    """Epoch of the fold that it holds, from 0, according to its last heartbeat."""

    step: int | None
    clips_per_second: float | None
    """Training clips passed forward and backward per second, in the last fold that it finished."""

    elsewhere: bool
    """Whether it holds a fold of another study."""

    failure: str | None
    """Message with which it failed its last fold, if it has finished none since."""


def listed_studies(session: Session, *, first: int, limit: int) -> list[ListedStudy]:
    """At most `limit` studies, newest first, from the one at index `first` on."""
    studies = session.scalars(select(StudyRow).order_by(StudyRow.id.desc()).offset(first).limit(limit)).all()
    counts: dict[int, dict[TrialState, int]] = {}
    best: dict[int, float] = {}
    for study_id, state, count, value in session.execute(
        select(TrialRow.study_id, TrialRow.state, func.count(), func.max(TrialRow.value))
        .where(among(TrialRow.study_id, [study.id for study in studies]))
        .group_by(TrialRow.study_id, TrialRow.state)
    ):
        counts.setdefault(study_id, {})[TrialState(state)] = count
        if value is not None:
            best[study_id] = value
    return [
        ListedStudy(
            name=study.name,
            state=StudyState(study.state),
            dataset=study.dataset,
            folds=study.fold_count,
            budget=study.spec["trials"],
            counts=counts.get(study.id, {}),
            best=best.get(study.id),
            created_at=study.created_at,
        )
        for study in studies
    ]


def study_folds(session: Session, study: StudyRow) -> list[StudyFold]:
    """The folds of a study by index."""
    return [StudyFold(name=fold.name, clips=len(fold.labels)) for fold in study_split(session, study)]


def study_workers(session: Session, study: StudyRow, *, seen_within: float) -> list[StudyWorker]:
    """Workers that made contact in the last `seen_within` seconds; those of this study before others."""
    recent = (
        select(TrialRow.id)
        .where(TrialRow.study_id == study.id)
        .order_by(TrialRow.number.desc())
        .limit(RECENT_TRIALS)
    )
    rank = func.row_number().over(partition_by=LeaseRow.worker_id, order_by=LeaseRow.ended_at.desc())
    leases = select(
        LeaseRow.worker_id, LeaseRow.id, LeaseRow.outcome, LeaseRow.message, rank.label("rank")
    ).where(LeaseRow.trial_id.in_(recent))
    ended = leases.where(LeaseRow.ended_at.is_not(None)).subquery()
    done = leases.where(LeaseRow.outcome == "done").subquery()
    provenance = ResultRow.payload["provenance"]
    duration = provenance["seconds"].as_string().cast(Float)
    # Below a millisecond the quotient says nothing, and may be more than a number can hold.
    speed = case((duration > MEASURABLE_SECONDS, provenance["clip_passes"].as_string().cast(Float) / duration))
    rows = session.execute(
        select(
            WorkerRow.name,
            WorkerRow.device,
            extract("epoch", func.clock_timestamp() - WorkerRow.last_seen).label("seconds_since_seen"),
            WorkerRow.drain,
            TrialRow.number,
            TrialRow.study_id,
            LeaseRow.fold,
            LeaseRow.epoch,
            LeaseRow.step,
            speed.label("speed"),
            case((ended.c.outcome.in_(["environment", "trial"]), ended.c.message)).label("failure"),
        )
        .outerjoin(LeaseRow, (LeaseRow.worker_id == WorkerRow.id) & LeaseRow.outcome.is_(None))
        .outerjoin(TrialRow, TrialRow.id == LeaseRow.trial_id)
        .outerjoin(ended, (ended.c.worker_id == WorkerRow.id) & (ended.c.rank == 1))
        .outerjoin(done, (done.c.worker_id == WorkerRow.id) & (done.c.rank == 1))
        .outerjoin(ResultRow, ResultRow.lease_id == done.c.id)
        .where(WorkerRow.last_seen > func.clock_timestamp() - seconds(seen_within))
        .order_by(WorkerRow.first_seen)
    ).all()
    workers = [
        StudyWorker(
            name=row.name,
            device=row.device,
            seconds_since_seen=float(row.seconds_since_seen),
            draining=row.drain is not None,
            trial=row.number if row.study_id == study.id else None,
            fold=row.fold if row.study_id == study.id else None,
            epoch=row.epoch if row.study_id == study.id else None,
            step=row.step if row.study_id == study.id else None,
            clips_per_second=row.speed,
            elsewhere=row.study_id not in {None, study.id},
            failure=row.failure,
        )
        for row in rows
    ]
    return sorted(workers, key=lambda worker: worker.elsewhere)


def last_folds(session: Session, study: StudyRow, limit: int) -> list[datetime]:
    """When the last folds were counted, oldest first; none from before the last change of the study's state."""
    newest_first = (EventRow.xid.desc(), EventRow.id.desc())
    of_study = EventRow.study_id == study.id
    moved = session.execute(
        select(EventRow.xid, EventRow.id)
        .where(of_study, EventRow.kind == EventKind.STUDY_MOVED.value)
        .order_by(*newest_first)
        .limit(1)
    ).one_or_none()
    counted = (
        select(EventRow.at)
        .where(of_study, EventRow.kind == EventKind.FOLD_ACCEPTED.value)
        .order_by(*newest_first)
        .limit(limit)
    )
    if moved is not None:
        counted = counted.where(tuple_(EventRow.xid, EventRow.id) > tuple_(moved.xid, moved.id))
    return list(reversed(session.scalars(counted).all()))


def last_progress(session: Session, study_id: int) -> datetime | None:
    """When a worker of a study last took a step in a fold that it finished, released or still trains.

    Failed and expired leases do not count, because a broken machine can take some steps before it fails. Reads
    all leases of the study.
    """
    unfinished = or_(LeaseRow.outcome.is_(None), LeaseRow.outcome == "released")
    at = case(
        (LeaseRow.outcome == "done", LeaseRow.ended_at), (unfinished & (LeaseRow.step > 0), LeaseRow.step_at)
    )
    trials = select(TrialRow.id).where(TrialRow.study_id == study_id)
    found: datetime | None = session.scalar(select(func.max(at)).where(LeaseRow.trial_id.in_(trials)))
    return found
