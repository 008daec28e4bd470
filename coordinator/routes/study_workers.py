"""A study's workers in Kubernetes: how many, where they run, why they do not, what they write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import StreamingResponse

from coordinator.access.gate import require_by_method
from coordinator.access.problems import problems
from coordinator.routes.transactions import Transaction, WakeLeader
from coordinator.runtime import CurrentRuntime
from coordinator.store import views
from coordinator.store.studies import get_study
from coordinator.studies import life
from services.contracts import StudyName, StudyView, StudyWorkersView, WorkerCount
from services.errors import Conflict

router = APIRouter(
    prefix="/api/v1/studies",
    tags=["studies"],
    dependencies=[Depends(require_by_method)],
    responses=problems(400, 401, 403, 404, 409, 413, 422, 429, 503),
)

Name = Annotated[StudyName, Path()]


@router.get("/{name}/workers")
def show(name: Name, runtime: CurrentRuntime, session: Transaction) -> StudyWorkersView:
    """The study's Job and pods in Kubernetes; nothing where this coordinator starts no workers."""
    get_study(session, name)
    if runtime.worker_jobs is None:
        return StudyWorkersView(job=None, wanted=None, suspended=False, stalled=None, pods=())
    return runtime.worker_jobs.view(name)


@router.post("/{name}/workers")
def resize(name: Name, wanted: WorkerCount, session: Transaction, wake_leader: WakeLeader) -> StudyView:
    """Set how many pods of workers the study has in Kubernetes; those too many give their folds back."""
    study = life.set_workers(session, name, wanted.workers)
    wake_leader()
    return views.study_view(session, study)


@router.get("/{name}/logs", response_class=StreamingResponse, responses={200: {"content": {"text/plain": {}}}})
def logs(
    name: Name,
    runtime: CurrentRuntime,
    follow: bool = False,
    tail: Annotated[int | None, Query(ge=0, le=100_000, description="last lines of each pod")] = None,
) -> StreamingResponse:
    """The logs of the study's pods, each line beginning with its pod's name."""
    # No transaction stays open while somebody follows.
    with runtime.sessions() as session:
        get_study(session, name)
    jobs = runtime.worker_jobs
    if jobs is None:
        raise Conflict("this coordinator starts no workers; look at the logs of those you started")
    return StreamingResponse(_encoded(jobs.logs(name, follow=follow, tail=tail)), media_type="text/plain")


def _encoded(lines: Iterator[str]) -> Iterator[bytes]:
    for line in lines:
        yield line.encode()
