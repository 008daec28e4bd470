"""What keeps a study from getting on, in sentences for the people who look at it."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.store.conditions import is_open, seconds
from coordinator.store.leadership import failing_duties
from coordinator.store.tables import LeaseRow, StudyRow, TrialRow, WorkerRow
from services.contracts import StudyState

ENVIRONMENT_SECONDS = 900.0
"""Seconds for which a failure of a worker's machine counts."""

REPEATED = 3
"""Failures of machines after which a study reports them; a single one is retried elsewhere."""

SILENT_SECONDS = 300.0
"""Seconds without contact after which a worker counts as gone."""


def study_troubles(session: Session, study: StudyRow) -> tuple[str, ...]:
    """Sentences about what is wrong with a study now; none if all is well."""
    return tuple(_troubles(session, study))


def _troubles(session: Session, study: StudyRow) -> Iterator[str]:
    yield from failing_duties(session, study.id)
    if study.state != StudyState.RUNNING:
        return
    failed = session.execute(
        select(func.count().over(), WorkerRow.name, LeaseRow.message)
        .join(TrialRow, TrialRow.id == LeaseRow.trial_id)
        .join(WorkerRow, WorkerRow.id == LeaseRow.worker_id)
        .where(
            TrialRow.study_id == study.id,
            LeaseRow.outcome == "environment",
            LeaseRow.ended_at > func.clock_timestamp() - seconds(ENVIRONMENT_SECONDS),
        )
        .order_by(LeaseRow.ended_at.desc())
        .limit(1)
    ).first()
    if failed is not None and failed[0] >= REPEATED:
        count, worker, message = failed
        yield (
            f"workers could not run {count} folds in the last {ENVIRONMENT_SECONDS / 60:.0f} minutes because "
            f"of their machines; {worker} said: {message}"
        )
    waiting = select(TrialRow.id).where(TrialRow.study_id == study.id, is_open()).limit(1)
    seen = select(WorkerRow.id).where(WorkerRow.last_seen > func.clock_timestamp() - seconds(SILENT_SECONDS))
    if session.scalar(waiting) is not None and session.scalar(seen.limit(1)) is None:
        yield (
            f"no worker made contact in the last {SILENT_SECONDS / 60:.0f} minutes; start one with "
            "`foldwise worker`, or see why none starts with `foldwise doctor`"
        )
