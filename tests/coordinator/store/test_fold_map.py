"""The trials x folds map is what the folds' rows say, before and after it is kept in memory."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from coordinator.pages.heat_map import heat_map, running_cells
from coordinator.store import study_progress
from coordinator.store.fold_map import DONE, PENDING, RUNNING, MappedTrial, fold_map
from coordinator.store.studies import get_study
from services.contracts import TrialState
from tests.harness.coordinator_harness import Harness


def mapped(harness: Harness) -> list[MappedTrial]:
    with harness.sessions() as session:
        return fold_map(session, get_study(session, "s"))


def cells(harness: Harness) -> list[list[int]]:
    return [list(trial.cells) for trial in mapped(harness)]


def test_it_follows_folds_through_lease_result_and_release(harness: Harness) -> None:
    harness.create(trials=2)
    assert cells(harness) == [[PENDING] * 5, [PENDING] * 5]
    first = harness.must_claim()
    assert cells(harness)[0] == [RUNNING, *[PENDING] * 4]
    assert running_cells(mapped(harness)) == "0:0"
    second = harness.report(first, wrong=1).next
    assert second is not None
    assert cells(harness)[0] == [DONE + 1, RUNNING, *[PENDING] * 3]
    harness.expire(second)
    assert cells(harness)[0] == [DONE + 1, *[PENDING] * 4]


def test_what_has_ended_is_kept_and_equal_to_what_is_read_anew(harness: Harness) -> None:
    harness.create(trials=2, pruning=[{"rule": "bound", "threshold": 1.0}])
    following = harness.must_claim()
    for wrong in (0, 0, 1):
        reported = harness.report(following, wrong=wrong)
        following = reported.next or following
    kept = mapped(harness)[0]
    assert (kept.state, kept.folds_done, kept.correct, kept.clips) == (TrialState.PRUNED, 3, 5, 6)
    assert list(kept.cells) == [DONE + 2, DONE + 2, DONE + 1, PENDING, PENDING]
    assert kept.pruned is not None
    assert (kept.pruned.rule, kept.pruned.fold) == ("bound", 2)
    assert mapped(harness)[0] is kept
    # Another process reads it from the rows.
    with harness.engine.connect() as connection:
        other = harness.sessions(bind=connection)
        assert fold_map(other, get_study(other, "s"))[0] == kept


def test_the_map_of_a_script_has_every_cell_by_trial_and_fold(harness: Harness) -> None:
    harness.create(trials=2)
    harness.report(harness.must_claim(), wrong=2)
    with harness.sessions() as session:
        study = get_study(session, "s")
        folds = study_progress.study_folds(session, study)
        told: dict[str, Any] = heat_map(
            fold_map(session, study), [f.name for f in folds], [f.clips for f in folds], None
        )
    assert told["folds"] == [f"S{i:03d}" for i in range(5)]
    assert told["clips"] == [2] * 5
    assert [row[:3] for row in told["trials"]] == [[0, "running", 0.0], [1, "ready", None]]
    numbers = np.frombuffer(base64.b64decode(told["cells"]), dtype="<u2").reshape(2, 5)
    assert numbers.tolist() == [[DONE, RUNNING, 0, 0, 0], [0] * 5]


def test_who_works_and_how_fast_is_told_from_leases_and_results(harness: Harness) -> None:
    harness.create(trials=2)
    assignment = harness.must_claim("w1")
    following = harness.report(assignment).next
    assert following is not None
    harness.beat(following, step=7)
    harness.must_claim("w2")
    with harness.sessions() as session:
        study = get_study(session, "s")
        one, two = study_progress.study_workers(session, study, seen_within=60)
        assert (one.name, one.trial, one.fold, one.step, one.clips_per_second) == ("w1", 0, 1, 7, 1.0)
        assert (two.name, two.trial, two.clips_per_second) == ("w2", 1, None)
        assert len(study_progress.last_folds(session, study, 10)) == 1
        (listed,) = study_progress.listed_studies(session, first=0, limit=10)
        assert (listed.name, listed.counts, listed.best) == ("s", {TrialState.RUNNING: 2}, None)
