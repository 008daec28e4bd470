"""When a worker of a study last made progress."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from coordinator.store.studies import get_study
from coordinator.store.study_progress import last_progress
from tests.harness.coordinator_harness import Harness


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [
        (None, True),
        ("done", True),
        ("released", True),
        # A broken machine can run some steps before it fails.
        ("environment", False),
        ("lapsed", False),
    ],
)
def test_only_folds_that_a_worker_finishes_or_gives_back_are_progress(
    harness: Harness, outcome: str | None, counts: bool
) -> None:
    harness.create()
    held = harness.must_claim("w1")
    with harness.sessions() as session:
        assert last_progress(session, get_study(session, "s").id) is None, "a lease alone is none"
    change = "UPDATE foldwise.leases SET step = 1, outcome = :outcome, ended_at = now() WHERE id = :id"
    with harness.engine.begin() as connection:
        connection.execute(text(change), {"outcome": outcome, "id": held.lease.id})
    with harness.sessions() as session:
        assert (last_progress(session, get_study(session, "s").id) is not None) == counts
