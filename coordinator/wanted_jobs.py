"""What the Job of a study should be: whether it exists, whether it is suspended, how many pods it has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from coordinator.store.tables import LeaseRow, StudyRow, TrialRow
from k8s import worker_jobs
from k8s.cluster import Manifest
from k8s.worker_jobs import WORKERS_ANNOTATION, queued
from services.contracts import StudyState


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a study needs from Kubernetes."""

    id: int
    name: str
    state: StudyState
    workers: int
    """Number of pods."""

    folds_under_way: int
    """Number of live leases of its folds."""


Change = Literal["create", "delete", "suspend", "resume", "resize", "fail"]
"""A change of a Job."""


def wanted_change(
    need: Need | None, job: Manifest | None, pods: Sequence[Manifest], *, is_hopeless: bool = False
) -> Change | None:
    """The next change that makes a Job as its study needs it; None if it already is.

    Args:
        need: of the study; None if the study does not exist (any more).
        job: of that study; None if there is none.
        pods: of the Job, without those that failed.
        is_hopeless: whether no machine can run a worker.
    """
    if job is None:
        return "create" if need and need.state == StudyState.RUNNING and need.workers else None
    if job["metadata"].get("deletionTimestamp"):
        return None
    if need is None or need.state == StudyState.DRAFT:
        return "delete"
    if need.state.over:
        # Running workers learn it from the coordinator and end; workers that wait for a GPU are not needed.
        phases = {pod.get("status", {}).get("phase") for pod in pods}
        needed = "Running" in phases or phases == {"Succeeded"}
        return None if worker_jobs.ended(job) or needed else "delete"
    return _change_of_open_study(need, job, is_hopeless=is_hopeless)


def needs_of_studies(session: Session, with_job: Collection[str], workers_by_default: int) -> list[Need]:
    """The needs of running studies and of those that have a Job."""
    live = (
        select(func.count())
        .select_from(LeaseRow)
        .join(TrialRow, TrialRow.id == LeaseRow.trial_id)
        .where(TrialRow.study_id == StudyRow.id, LeaseRow.outcome.is_(None))
        .scalar_subquery()
    )
    needs = []
    concerned = or_(StudyRow.state == StudyState.RUNNING, StudyRow.name.in_(with_job))
    for study, folds in session.execute(select(StudyRow, live).where(concerned)):
        asked = study.spec.get("workers")
        needs.append(
            Need(
                id=study.id,
                name=study.name,
                state=StudyState(study.state),
                workers=workers_by_default if asked is None else asked,
                folds_under_way=folds,
            )
        )
    return needs


def _change_of_open_study(need: Need, job: Manifest, *, is_hopeless: bool) -> Change | None:
    end = worker_jobs.ended(job)
    suspended = bool(job["spec"].get("suspend"))
    if end:
        # Its workers ended with the study, which then got more trials. A failed Job stays until the study is
        # resumed, to show why it failed.
        return "delete" if end == "Complete" else None
    if is_hopeless and not suspended:
        return "fail"
    if need.state == StudyState.PAUSED:
        # Suspending ends the pods at once, so the folds that they hold finish first. Kueue suspends by itself.
        return None if suspended or queued(job) or need.folds_under_way else "suspend"
    if suspended and not queued(job):
        return "resume"
    asked = job["metadata"].get("annotations", {}).get(WORKERS_ANNOTATION)
    return "resize" if asked != str(need.workers) else None
