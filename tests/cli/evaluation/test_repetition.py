"""`foldwise replay STUDY`: equal to the study, or the first trial, fold and field that differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace

import pytest
from sqlalchemy.orm import Session

from cli.evaluation.repetition import Repetition, repeat
from client.study_client import StudyClient
from coordinator.settings import CoordinatorSettings
from coordinator.store import views
from coordinator.store.studies import get_study
from coordinator.store.tables import ResultRow, TrialRow
from coordinator.studies import life
from services.contracts import FoldAssignment, FoldTask, StudyView, TrialState
from services.errors import Conflict
from services.seeds import derive_seed
from tests.harness.coordinator_harness import Harness, work_until_over
from tests.harness.served_app import ADMIN_TOKEN, study_client

CONFIGURATION = {"clahe": True, "temporal_size": 5, "dropout": 0.125}
SPEC = {
    "space": {"clahe": [True, False], "temporal_size": [1, 3, 5], "dropout": {"low": 0.0, "high": 0.9}},
    "sampler": {"kind": "tpe", "startup_trials": 2},
    "protocol": {"kind": "kfold", "k": 5},
    "pruning": [{"rule": "median", "startup_trials": 1, "warmup_folds": 1}],
    "trials": 6,
    "feedback_delay": 1,
}


def wrong_clips(task: FoldTask) -> int:
    return derive_seed(task.seed) % 2


@pytest.fixture
def client(settings: CoordinatorSettings) -> Iterator[StudyClient]:
    # The harness leads.
    with study_client(replace(settings, leader_interval=60), ADMIN_TOKEN) as client:
        yield client


@pytest.fixture
def watch(harness: Harness, client: StudyClient) -> Callable[[StudyView], StudyView]:
    """Be the worker of a study until it is over, with errors that follow from the task."""

    def report(assignment: FoldAssignment) -> None:
        harness.report(assignment, wrong=wrong_clips(assignment), more=False)

    return work_until_over(harness, client, report)


@pytest.fixture
def replayed(
    harness: Harness, client: StudyClient, watch: Callable[[StudyView], StudyView]
) -> Callable[[], Repetition]:
    """Compare a study, of which somebody enqueued a trial while it ran, with its replay."""
    harness.create(**SPEC)
    for _ in range(5):
        assignment = harness.must_claim()
        harness.report(assignment, wrong=wrong_clips(assignment), more=False)
    with harness.sessions.begin() as session:
        life.enqueue(session, "s", [CONFIGURATION])
    watch(client.get("s"))
    return lambda: repeat(client, "s", None, watch=watch)


def test_a_replay_is_equal_and_repeats_what_was_enqueued(
    harness: Harness, client: StudyClient, replayed: Callable[[], Repetition]
) -> None:
    found = replayed()
    assert (found.equal, found.difference, found.trials, found.replay) == (True, None, 6, "s-replay")
    assert found.digest == client.digest("s").digest == client.digest("s-replay").digest
    enqueued = [t.number for t in client.trials("s") if t.parameters == CONFIGURATION]
    assert enqueued == [t.number for t in client.trials("s-replay") if t.parameters == CONFIGURATION]
    assert len(enqueued) == 1
    # Compared again, nothing runs again.
    folds = client.get("s-replay").folds_done
    assert replayed().equal
    assert client.get("s-replay").folds_done == folds


def test_the_first_difference_is_named(harness: Harness, replayed: Callable[[], Repetition]) -> None:
    assert replayed().equal

    def difference(
        number: int, change: Callable[[Session, TrialRow], None]
    ) -> tuple[int | None, int | None, str]:
        """The first difference after a change of this trial in the database."""
        with harness.sessions.begin() as session:
            change(session, views.get_trial(session, get_study(session, "s"), number))
        found = replayed()
        assert not found.equal
        assert found.difference is not None
        assert found.difference.recorded != found.difference.replayed
        return found.difference.trial, found.difference.fold, found.difference.field

    def state(_session: Session, trial: TrialRow) -> None:
        trial.state = TrialState.FAILED

    def prediction(session: Session, trial: TrialRow) -> None:
        result = session.get_one(ResultRow, (trial.id, 1))
        result.payload = deepcopy(result.payload)
        result.payload["epochs"][0]["predicted"][1] = 7

    def parameter(_session: Session, trial: TrialRow) -> None:
        trial.parameters = {**trial.parameters, "dropout": 0.875}

    assert difference(5, state) == (5, None, "state")
    assert difference(4, prediction) == (4, 1, "epochs.0.predicted.1")
    assert difference(3, parameter) == (3, None, "parameters.dropout")


def test_a_study_that_runs_and_a_name_that_is_taken_are_refused(
    harness: Harness, client: StudyClient, watch: Callable[[StudyView], StudyView]
) -> None:
    harness.create(**SPEC)
    with pytest.raises(Conflict, match="s is running; replay it once it is over"):
        repeat(client, "s", None, watch=watch)
    watch(client.get("s"))
    harness.create(**{**SPEC, "name": "other", "feedback_delay": 2})
    with pytest.raises(Conflict, match="a study other exists already and differs in feedback_delay"):
        repeat(client, "s", "other", watch=watch)
