"""Lists of studies say what the views of single studies say."""

from __future__ import annotations

import pytest

from coordinator.pages import studies as pages
from coordinator.store import study_progress, views
from coordinator.store.studies import get_study
from services.contracts import BoundRule, FoldAssignment, StudyState
from tests.harness.coordinator_harness import Harness


def test_a_list_has_the_best_trial_of_each_study(harness: Harness) -> None:
    harness.create(name="complete", trials=2, economies={"reuse_folds": False}, space={"clahe": [True]})
    assignment: FoldAssignment | None = harness.must_claim(study="complete")
    while assignment is not None:
        assignment = harness.report(assignment, wrong=1 - assignment.trial).next
    harness.create(name="pruned", trials=1, pruning=[BoundRule(threshold=0.9)])
    harness.report(harness.must_claim(study="pruned"), wrong=2)
    harness.create(name="new", trials=1)
    with harness.sessions() as session:
        listed = {view.name: view for view in views.list_studies(session)}
        for name in ("complete", "pruned", "new"):
            assert listed[name] == views.study_view(session, get_study(session, name))
    assert listed["complete"].best is not None
    assert (listed["complete"].best.number, listed["complete"].best.value) == (1, 1.0)
    assert listed["pruned"].best is not None
    assert listed["pruned"].best.pruned is not None
    assert (listed["new"].best, listed["new"].folds_done) == (None, 0)
    assert (listed["pruned"].state, listed["pruned"].folds_done) == (StudyState.COMPLETE, 1)


@pytest.mark.parametrize(("first", "names"), [(0, ["s2", "s1"]), (2, ["s0"]), (3, [])])
def test_studies_are_listed_newest_first_in_parts(harness: Harness, first: int, names: list[str]) -> None:
    for number in range(3):
        harness.create(name=f"s{number}", start=False)
    with harness.sessions() as session:
        found = study_progress.listed_studies(session, first=first, limit=2)
    assert [study.name for study in found] == names
    assert pages.STUDIES_PER_PAGE > 2
