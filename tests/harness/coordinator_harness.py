"""A coordinator without HTTP, and workers that make up their results."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from client.study_client import StudyClient
from coordinator.leader import Leader
from coordinator.scheduling import claims, leases, reports
from coordinator.scheduling.leases import LeaseKey
from coordinator.settings import CoordinatorSettings
from coordinator.store import trial_results, views
from coordinator.store.studies import get_study
from coordinator.store.tables import StudyFoldRow
from coordinator.studies import life
from services.contracts import (
    ClaimRequest,
    ConfusionView,
    FoldAssignment,
    FoldResult,
    FoldView,
    Heartbeat,
    Lease,
    StudySpec,
    StudyView,
    TrialView,
    Verdict,
    WorkerInfo,
)
from services.contracts.protocol import PROTOCOL
from services.errors import StudyOver
from tests.harness.simulated_results import make_result
from tests.harness.tiny_cache import FINGERPRINT


class SteppedLeader(Leader):
    """A leader without threads: each call of `round` takes the leadership and then lets it expire."""

    def __init__(self, engine: Engine, settings: CoordinatorSettings) -> None:
        super().__init__(engine, engine, settings)
        self._connections = engine

    def round(self) -> None:
        """Do every duty once and project every change."""
        self._election.attempt()
        if not self.is_leader:
            self._election.attempt(by_force=True)
        self._duties.attempt()
        self.project()
        with self._connections.begin() as connection:
            connection.execute(text("UPDATE foldwise.leader SET expires_at = clock_timestamp()"))

    def project(self) -> None:
        """Project every change."""
        self._projecting.attempt()


class Harness:
    """Each call is one transaction, as in a request."""

    def __init__(self, engine: Engine, cache_root: Path) -> None:
        self.settings = CoordinatorSettings(
            database_url=engine.url.render_as_string(hide_password=False),
            cache_root=cache_root,
            admin_token="a" * 20,
            worker_token="w" * 20,
            projection_seconds=0,
        )
        self.engine = engine
        self.sessions = sessionmaker(engine, expire_on_commit=False)
        self.leader = SteppedLeader(engine, self.settings)

    def create(self, **spec: Any) -> None:
        with self.sessions.begin() as session:
            given = {
                "name": "s",
                "training": {"frames": 2, "frame_size": 16},
                "pruning": [],
                "trials": 2,
                **spec,
            }
            life.create(session, StudySpec(cache="tiny", **given), self.settings.cache_root)
        self.leader.round()

    def claim(
        self,
        worker: str = "w1",
        key: str | None = None,
        caches: Sequence[str] = (FINGERPRINT,),
        device: str = "cpu",
        threads: int | None = 1,
        protocol: int = PROTOCOL,
        **given: Any,
    ) -> FoldAssignment | None:
        info = WorkerInfo(id=f"worker-{worker}", name=worker, device=device)
        request = ClaimRequest(worker=info, caches=tuple(caches), **given)
        with self.sessions.begin() as session:
            key = key or str(uuid.uuid4())
            return claims.claim(session, request, key, self.settings, threads=threads, protocol=protocol)

    def must_claim(self, worker: str = "w1", **given: Any) -> FoldAssignment:
        assignment = self.claim(worker, **given)
        assert assignment is not None
        return assignment

    def report(self, assignment: FoldAssignment, wrong: int = 0, **given: Any) -> Verdict:
        with self.sessions.begin() as session:
            result = self.result(session, assignment, wrong)
            return reports.report(session, key_of(assignment.lease), result, self.settings, **given)

    def result(self, session: Session, assignment: FoldAssignment, wrong: int) -> FoldResult:
        study = get_study(session, assignment.study)
        labels = session.get_one(StudyFoldRow, (study.id, assignment.fold)).labels
        predicted = tuple(1 - y if i < wrong else y for i, y in enumerate(labels))
        return make_result(assignment, predicted)

    def beat(self, assignment: FoldAssignment, step: int) -> str:
        with self.sessions.begin() as session:
            beat = Heartbeat(epoch=0, step=step)
            return leases.heartbeat(session, key_of(assignment.lease), beat, self.settings).command

    def expire(self, assignment: FoldAssignment) -> None:
        """Let the database's clock pass the end of a lease, and the leader see it."""
        with self.engine.begin() as connection:
            connection.execute(
                text(
                    "UPDATE foldwise.leases SET expires_at = clock_timestamp() - interval '1 s' WHERE id = :id"
                ),
                {"id": assignment.lease.id},
            )
        self.leader.round()

    def study(self, name: str = "s") -> StudyView:
        with self.sessions.begin() as session:
            return views.study_view(session, get_study(session, name))

    def trial(self, number: int, name: str = "s") -> TrialView:
        with self.sessions.begin() as session:
            study = get_study(session, name)
            return views.trial_views(session, study, [views.get_trial(session, study, number)])[0]

    def folds(self, number: int, name: str = "s") -> list[FoldView]:
        with self.sessions.begin() as session:
            study = get_study(session, name)
            return trial_results.fold_views(session, study, views.get_trial(session, study, number))

    def confusion(self, number: int, name: str = "s") -> ConfusionView:
        with self.sessions.begin() as session:
            study = get_study(session, name)
            return views.confusion_view(session, study, views.get_trial(session, study, number))

    def leases(self) -> int:
        """How many leases were ever granted."""
        with self.engine.connect() as connection:
            return connection.scalar(text("SELECT count(*) FROM foldwise.leases")) or 0


class LeaderWithoutOptuna(SteppedLeader):
    """Does everything but project, for tests that do not look into Optuna's tables: half their time."""

    def project(self) -> None:
        """Do nothing."""


def key_of(lease: Lease) -> LeaseKey:
    return LeaseKey(id=lease.id, term=lease.term, secret=lease.secret)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def work_until_over(
    harness: Harness, client: StudyClient, report: Callable[[FoldAssignment], None]
) -> Callable[[StudyView], StudyView]:
    """A function that runs all folds of a study, each ended by `report`, and returns the study."""

    def work(study: StudyView) -> StudyView:
        while True:
            try:
                assignment = harness.claim(study=study.name)
            except StudyOver:
                return client.get(study.name)
            if assignment is None:
                harness.leader.round()
            else:
                report(assignment)

    return work
