"""The rows that go with every change: an event for those who follow, and a trial in the outbox.

Written alone, or as a part of the one statement that counts a fold (`fold_writes`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter
from sqlalchemy.dialects.postgresql import Insert, insert

from coordinator.store.tables import EventRow, OutboxRow


def event_row(
    study_id: int | BindParameter[int],
    kind: str | BindParameter[str],
    data: dict[str, Any] | BindParameter[Any],
) -> Insert:
    """The statement that writes an event."""
    return insert(EventRow).values(study_id=study_id, kind=kind, data=data).inline()


def outbox_row(trial_id: int | BindParameter[int]) -> Insert:
    """The statement that marks a trial in the outbox, so that the leader projects it to Optuna."""
    return insert(OutboxRow).values(trial_id=trial_id).inline()
