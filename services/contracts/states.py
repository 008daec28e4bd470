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
        """No fold will ever be leased again."""
        return self in {StudyState.COMPLETE, StudyState.STOPPED}


class TrialState(StrEnum):
    """Life of a trial: ready -> running -> complete | pruned | failed | cancelled (these absorb)."""

    READY = "ready"
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """The trial has ended."""
        return self not in {TrialState.READY, TrialState.RUNNING}


class FoldState(StrEnum):
    """Life of a fold: pending -> leased -> done | failed; a lapsed or released lease is pending again."""

    PENDING = "pending"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"
