"""With a feedback delay a study is a function of its spec, whatever workers, deaths and reports do and when."""

from __future__ import annotations

import random
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from coordinator.scheduling import failures, leases
from coordinator.store.conditions import is_open
from coordinator.store.digests import study_digest
from coordinator.store.studies import get_study
from coordinator.store.tables import StudyRow, TrialRow
from coordinator.studies import life
from services.contracts import Failure, FoldAssignment, StudyDigest, StudyState
from services.errors import LeaseSuperseded
from services.seeds import derive_seed
from tests.harness.coordinator_harness import Harness, LeaderWithoutOptuna, key_of

TRIALS, CLIPS = 10, 2

SEARCH: dict[str, Any] = {
    # Of few configurations, so that some are suggested twice and their folds are reused.
    "space": {"dropout": [0.0, 0.2, 0.4, 0.6, 0.8], "temporal_size": [1, 3, 5]},
    "sampler": {"kind": "tpe", "startup_trials": 3},
    "pruning": [
        {"rule": "median", "startup_trials": 2, "warmup_folds": 1},
        {"rule": "bound", "threshold": 0.3},
    ],
    "trials": TRIALS,
    "seed": 5,
    "max_expired_leases": 1000,
}

NAMES = (f"s{number}" for number in count())


def fails(assignment: FoldAssignment) -> bool:
    """Whether the configuration cannot run this fold, on no machine."""
    parameters = assignment.hyperparameters
    return assignment.fold == 3 and derive_seed(parameters.dropout, parameters.temporal_size) % 4 == 0


def wrong_clips(assignment: FoldAssignment) -> int:
    """As a deterministic training gives them: they follow from parameters and fold."""
    parameters = assignment.hyperparameters
    rng = random.Random(derive_seed(parameters.dropout, parameters.temporal_size, assignment.fold))
    return sum(rng.random() < 0.15 + parameters.dropout * 0.7 for _ in range(CLIPS))


@pytest.fixture
def search(harness: Harness) -> Search:
    return Search(harness)


class Search:
    """Runs searches of one spec and gives their digests."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        harness.leader = LeaderWithoutOptuna(harness.engine, harness.settings)

    def create(self, **spec: Any) -> str:
        name = next(NAMES)
        self.harness.create(name=name, **{**SEARCH, **spec})
        return name

    def digest(self, name: str) -> StudyDigest:
        with self.harness.sessions() as session:
            return study_digest(session, get_study(session, name))

    def calm(self, **spec: Any) -> StudyDigest:
        """One worker runs fold after fold."""
        name = self.create(**spec)
        while not self.is_complete(name):
            assignment = self.harness.claim(study=name)
            while assignment is not None:
                assignment = self.run(assignment)
            self.harness.leader.round()
        return self.digest(name)

    def stormy(  # noqa: PLR0912 - one branch for each thing that can happen
        self, rng: random.Random, *, workers: int, **spec: Any
    ) -> StudyDigest:
        """Several workers claim, report, die, come back late and give up in random order."""
        name = self.create(**spec)
        held: dict[str, FoldAssignment] = {}
        late: list[FoldAssignment] = []
        delay = spec.get("feedback_delay")
        while not self.is_complete(name):
            worker = f"w{rng.randrange(workers)}"
            assignment = held.pop(worker, None)
            match rng.choices(["run", "die", "release", "lead", "late", "pause"], [12, 1, 1, 3, 1, 1])[0]:
                case "run" if assignment is None:
                    claimed = self.harness.claim(worker, study=name)
                    if claimed is not None:
                        held[worker] = claimed
                case "run" if assignment is not None:
                    following = self.run(assignment)
                    if following is not None:
                        held[worker] = following
                case "die" if assignment is not None:
                    self.harness.expire(assignment)
                    late.append(assignment)
                case "release" if assignment is not None:
                    self.release(assignment)
                case "late" if late:
                    lost = late.pop(rng.randrange(len(late)))
                    if not fails(lost):
                        self.report(lost, more=False)
                case "pause":
                    with self.harness.sessions.begin() as session:
                        life.pause(session, name)
                    self.harness.leader.round()
                    with self.harness.sessions.begin() as session:
                        life.resume(session, name)
                case "lead":
                    # Another coordinator leads: it knows the search only from the database.
                    if rng.random() < 0.6:
                        self.harness.leader = LeaderWithoutOptuna(self.harness.engine, self.harness.settings)
                    self.harness.leader.round()
            if assignment is not None and worker not in held:
                # What it held may still run somewhere.
                late.append(assignment)
            assert delay is None or self.open_trials(name) <= delay + 1
        return self.digest(name)

    def claim_and_lead(self, name: str, worker: str) -> FoldAssignment:
        """The first fold of the next trial."""
        assignment = self.harness.must_claim(worker, study=name)
        self.harness.leader.round()
        return assignment

    def run_trial(self, assignment: FoldAssignment, wrong: int) -> None:
        """Run all folds of a trial of which this is the first."""
        following: FoldAssignment | None = assignment
        while following is not None and following.trial == assignment.trial:
            following = self.harness.report(following, wrong).next
        if following is not None:
            self.release(following)

    def release(self, assignment: FoldAssignment) -> None:
        with self.harness.sessions.begin() as session:
            leases.release(session, key_of(assignment.lease))

    def is_complete(self, name: str) -> bool:
        with self.harness.sessions() as session:
            return session.scalar(select(StudyRow.state).where(StudyRow.name == name)) == StudyState.COMPLETE

    def open_trials(self, name: str) -> int:
        with self.harness.sessions() as session:
            of_study = TrialRow.study_id == select(StudyRow.id).where(StudyRow.name == name).scalar_subquery()
            return session.scalar(select(func.count()).where(of_study, is_open())) or 0

    def run(self, assignment: FoldAssignment) -> FoldAssignment | None:
        """Report the fold, or that the configuration cannot run it; the next fold, if there is one."""
        if not fails(assignment):
            return self.report(assignment)
        with self.harness.sessions.begin() as session:
            try:
                failures.fail(session, key_of(assignment.lease), Failure(kind="trial", message="too large"))
            except LeaseSuperseded:
                return None
        return None

    def report(self, assignment: FoldAssignment, *, more: bool = True) -> FoldAssignment | None:
        try:
            return self.harness.report(assignment, wrong_clips(assignment), more=more).next
        except LeaseSuperseded:
            return None


DELAYS = [(0, "fixed"), (1, "fixed"), (3, "hardest_first"), (6, "fixed")]


@pytest.mark.parametrize(
    "examples",
    [
        pytest.param(3, id="few"),
        pytest.param(60, marks=[pytest.mark.long, pytest.mark.timeout(1200)], id="many"),
    ],
)
def test_every_interleaving_chooses_and_prunes_as_one_worker_does(search: Search, examples: int) -> None:
    calm = {which: search.calm(feedback_delay=which[0], fold_order=which[1]) for which in DELAYS[1:3]}

    @given(
        seed=st.integers(0, 2**32),
        workers=st.integers(2, 5),
        per_trial=st.integers(1, 3),
        which=st.sampled_from(DELAYS),
    )
    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        # An example takes a second; a smaller one would say no more than the first that fails.
        phases=[Phase.generate],
    )
    def compare(seed: int, workers: int, per_trial: int, which: tuple[int, str]) -> None:
        delay, order = which
        spec = {"feedback_delay": delay, "fold_order": order}
        if which not in calm:
            calm[which] = search.calm(**spec)
        found = search.stormy(random.Random(seed), workers=workers, workers_per_trial=per_trial, **spec)
        assert (found.of_trials, found.digest) == (calm[which].of_trials, calm[which].digest)
        assert found.trials == TRIALS

    compare()
    # Some trials fail, and searches that knew more or less chose otherwise.
    assert all("failures" in digest.depends_on for digest in calm.values())
    assert len({digest.digest for digest in calm.values()}) == len(calm)


def test_without_a_delay_the_order_of_reports_decides_and_the_digest_says_so(search: Search) -> None:
    calm = search.calm(feedback_delay=None)
    assert "order" in calm.depends_on
    stormy = {
        search.stormy(random.Random(seed), workers=4, workers_per_trial=2, feedback_delay=None).digest
        for seed in range(2)
    }
    assert stormy | {calm.digest} != {calm.digest}


@pytest.mark.parametrize("same_leader", [True, False])
def test_the_sampler_learns_nothing_of_trials_within_the_delay(search: Search, same_leader: bool) -> None:
    suggested = []
    for first_to_end in (0, 3):
        name = search.create(
            feedback_delay=3, pruning=[], sampler={"kind": "tpe", "startup_trials": 1, "constant_liar": False}
        )
        search.harness.leader.round()
        held = [search.claim_and_lead(name, f"w{number}") for number in range(4)]
        # No trial starts, so another worker helps with the first.
        helped = search.harness.must_claim("w4", study=name)
        assert helped.trial == 0
        search.harness.report(helped, more=False)
        # Trial 4 waits for trial 0, whatever the others have shown by then.
        for number in range(3, -1, -1) if first_to_end == 3 else [0]:
            search.run_trial(held[number], wrong=number % 2)
            if not same_leader:
                search.harness.leader = LeaderWithoutOptuna(search.harness.engine, search.harness.settings)
            search.harness.leader.round()
        suggested.append(search.harness.trial(4, name).parameters)
    assert suggested[0] == suggested[1]


@pytest.mark.parametrize(
    ("spec", "folds"),
    [
        ({}, [(0, 0), (1, 0), (0, 1), (0, 2)]),
        ({"idle_workers_help": False}, [(0, 0), (1, 0)]),
        ({"feedback_delay": None}, [(0, 0), (1, 0)]),
    ],
)
def test_once_all_trials_have_started_idle_workers_help_the_first_of_them(
    search: Search, spec: dict[str, Any], folds: list[tuple[int, int]]
) -> None:
    name = search.create(trials=2, workers_per_trial=1, **{"feedback_delay": 5, **spec})
    search.harness.leader.round()
    claims = [search.harness.claim(f"w{number}", study=name) for number in range(4)]
    assert [(claim.trial, claim.fold) for claim in claims if claim is not None] == folds
