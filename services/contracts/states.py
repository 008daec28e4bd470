"""States of studies, trials and folds."""

from __future__ import annotations

from enum import StrEnum


class StudyState(StrEnum):
    """Life of a study: draft -> running <-> paused -> complete | stopped."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    STOPPED = "stopped"

    @property
    def over(self) -> bool:
        """Whether the study leases no more folds."""
        return self in {StudyState.COMPLETE, StudyState.STOPPED}


class TrialState(StrEnum):
    """Life of a trial: ready -> running -> complete | pruned | failed | cancelled."""

    READY = "ready"
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Whether the trial has ended."""
        return self not in {TrialState.READY, TrialState.RUNNING}


class FoldState(StrEnum):
    """Life of a fold: pending -> leased -> done | failed; pending again if its lease ends without result."""

    PENDING = "pending"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"
