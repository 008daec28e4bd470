"""Workers in Kubernetes: each running study has a Job, and the fold of a pod that died is released at once.

Kubernetes decides where pods run. Every round here makes each study's Job as the study needs it: whether it
exists, whether it is suspended, how many pods it has. A round remembers nothing that the database and the API
server do not know, so another coordinator can repeat it; only the leader changes anything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import assert_never

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from coordinator.scheduling import workers
from coordinator.store.study_progress import last_progress
from coordinator.wanted_jobs import Change, Need, needs_of_studies, wanted_change
from k8s import unusable_machines, worker_jobs
from k8s.cluster import Cluster, Manifest
from k8s.logs import lines_of
from k8s.watch import Watched
from k8s.worker_jobs import STUDY_LABEL, WORKERS_ANNOTATION, Template, queued
from services.contracts import PodView, StudyState, StudyWorkersView
from services.errors import Conflict, FoldwiseError

log = structlog.get_logger()

ROUND_SECONDS = 1.0
"""Seconds between two rounds if nothing changes."""

TEMPLATE_SECONDS = 30.0
"""Seconds after which the chart's template is read again, because an upgrade changes it."""

REASONS_SECONDS = 5.0
"""Seconds between two requests for what keeps a Job from creating pods."""


class WorkerJobs(threading.Thread):
    """The thread that keeps the Jobs of studies as they should be, and what it knows about their pods."""

    def __init__(
        self,
        cluster: Cluster,
        template_name: str,
        sessions: sessionmaker[Session],
        *,
        is_leader: Callable[[], bool],
    ) -> None:
        """`template_name` names the ConfigMap that holds the chart's Job."""
        super().__init__(name="worker-jobs", daemon=True)
        self._cluster = cluster
        self._template_name = template_name
        self._sessions = sessions
        self._is_leader = is_leader
        self._template: Template | None = None
        self._template_read = -TEMPLATE_SECONDS
        self._jobs: Watched | None = None
        self._pods: Watched | None = None
        self._gone: SimpleQueue[tuple[str, str, bool]] = SimpleQueue()
        self._ended_pods: set[str] = set()
        self._wake = threading.Event()
        self._ending = False
        self._reasons: dict[str, tuple[float, list[Manifest], Manifest | None]] = {}

    def wake(self) -> None:
        """Start the next round now, because something changed."""
        self._wake.set()

    def stop(self) -> None:
        """End after the current round; Jobs continue."""
        self._ending = True
        self._wake.set()
        self.join()
        for watched in (self._jobs, self._pods):
            if watched is not None:
                watched.stop()
        self._cluster.close()

    def run(self) -> None:
        """Do round after round; errors are logged, and the next round tries again."""
        while not self._ending:
            try:
                self.round()
            except (FoldwiseError, SQLAlchemyError) as error:
                log.warning("worker_jobs_failed", error=str(error).splitlines()[0])
            except Exception:
                # If this thread ended, studies would get no more workers.
                log.exception("worker_jobs_failed")
            self._wake.wait(ROUND_SECONDS)
            self._wake.clear()

    def round(self) -> None:
        """Do every step once. Public for tests."""
        template = self._current_template()
        jobs, pods = self._watched(template)
        if not (jobs.listed.is_set() and pods.listed.is_set()):
            return
        leading = self._is_leader()
        if leading:
            self._release_gone()
        else:
            # The leader watches the same pods.
            self._gone = SimpleQueue()
        self._ask_reasons(jobs.all())
        if leading:
            self._update_jobs(template, jobs)

    def view(self, study: str) -> StudyWorkersView:
        """A study's Job, its pods, and for each node that could not run a worker the last pod that tried."""
        job = self._job_of(study)
        unusable = unusable_machines.each_node_once(self._unusable(study, job, recent=True))
        return StudyWorkersView(
            job=None if job is None else job["metadata"]["name"],
            wanted=None if job is None else job["spec"].get("parallelism"),
            suspended=bool(job and job["spec"].get("suspend")),
            stalled=self.stalled(study),
            pods=tuple(worker_jobs.pod_view(pod) for pod in [*self._pods_of(study), *unusable]),
        )

    def stalled(self, study: str) -> str | None:
        """Why no worker of a running study can run; None if nothing is known to prevent it.

        Sends no request: it answers from the last round.
        """
        job = self._job_of(study)
        pods = self._pods_of(study)
        if job is None:
            return None
        has_ended = worker_jobs.ended(job) is not None
        unusable = self._unusable(study, job, recent=not has_ended)
        if pods or has_ended:
            return worker_jobs.why_stalled(job, pods, (), None, unusable)
        _, events, workload = self._reasons.get(job["metadata"]["uid"], (0.0, [], None))
        return worker_jobs.why_stalled(job, pods, events, workload, unusable)

    def pods(self) -> list[PodView]:
        """Pods of all workers that have not ended."""
        watched = self._pods
        alive = [] if watched is None else [pod for pod in watched.all() if not worker_jobs.is_over(pod)]
        return [worker_jobs.pod_view(pod) for pod in alive]

    def retry(self, study: str) -> None:
        """Delete a study's Job that has failed, so that the next round creates another one.

        Raises:
            FoldwiseError, Unavailable: the API server rejects the request or does not answer.
        """
        job = self._job_of(study)
        if job is not None and worker_jobs.ended(job) == "Failed":
            self._cluster.delete("batch", "jobs", job["metadata"]["name"])
            log.info("worker_job_deleted", study=study, job=job["metadata"]["name"])

    def logs(self, study: str, *, follow: bool, tail: int | None) -> Iterator[str]:
        """Log lines of a study's pods, also of ended ones; each line begins with the name of its pod."""

        def with_a_log() -> list[str]:
            pods = [] if self._pods is None else [p for p in self._pods.all() if _study_of(p) == study]
            started = [pod for pod in pods if pod.get("status", {}).get("phase") not in {None, "Pending"}]
            return sorted(pod["metadata"]["name"] for pod in started)

        return lines_of(self._cluster, with_a_log, follow=follow, tail=tail)

    def _current_template(self) -> Template:
        if self._template is None or time.monotonic() - self._template_read > TEMPLATE_SECONDS:
            self._template = Template.of(self._cluster.get("", "configmaps", self._template_name))
            self._template_read = time.monotonic()
        return self._template

    def _watched(self, template: Template) -> tuple[Watched, Watched]:
        if self._jobs is None or self._pods is None:
            selector = template.selector
            self._jobs = Watched(
                self._cluster,
                "batch",
                "jobs",
                f"{selector},{STUDY_LABEL}",
                on_change=lambda _job, _gone: self.wake(),
            )
            self._pods = Watched(self._cluster, "", "pods", selector, on_change=self._pod_changed)
            self._jobs.start()
            self._pods.start()
        return self._jobs, self._pods

    def _pod_changed(self, pod: Manifest, gone: bool) -> None:
        uid = pod["metadata"]["uid"]
        over = worker_jobs.is_over(pod)
        # Only the first change that reports the pod's end says why it ended.
        if (gone or over) and uid not in self._ended_pods:
            self._gone.put((pod["metadata"]["name"], uid, not over or _disrupted(pod)))
        if gone:
            self._ended_pods.discard(uid)
        elif over:
            self._ended_pods.add(uid)
        self.wake()

    def _update_jobs(self, template: Template, jobs: Watched) -> None:
        of_study = {_study_of(job): job for job in jobs.all()}
        with self._sessions() as session:
            needs = {need.name: need for need in needs_of_studies(session, of_study.keys(), template.workers)}
        for study in needs.keys() | of_study.keys():
            job = of_study.get(study)
            change = wanted_change(
                needs.get(study),
                job,
                self._pods_of(study, {"Failed"}),
                is_hopeless=self._is_hopeless(needs.get(study), job),
            )
            if change is not None:
                try:
                    self._do(change, template, needs.get(study), job)
                except (FoldwiseError, SQLAlchemyError) as error:
                    log.warning("worker_job_failed", study=study, change=change, error=str(error))
            self._update_queue(needs.get(study), job)

    def _is_hopeless(self, need: Need | None, job: Manifest | None) -> bool:
        if need is None or job is None or worker_jobs.ended(job):
            return False
        unusable, living = self._unusable(need.name, job), self._pods_of(need.name)
        if not unusable_machines.no_machine_is_left(unusable, living, job, None):
            return False
        with self._sessions() as session:
            since = last_progress(session, need.id)
        return unusable_machines.no_machine_is_left(unusable, living, job, since)

    def _unusable(self, study: str, job: Manifest | None, *, recent: bool = False) -> list[Manifest]:
        """Pods of a study's Job whose machine could not run a worker."""
        failed = [] if self._pods is None or job is None else self._pods_of(study, {"Pending", "Running"})
        ended = [] if job is None else unusable_machines.on_unusable_machines(failed, job)
        now = datetime.now(UTC)
        return [pod for pod in ended if not recent or unusable_machines.is_recent(pod, now)]

    def _release_gone(self) -> None:
        while True:
            try:
                name, uid, disrupted = self._gone.get_nowait()
            except Empty:
                return
            with self._sessions.begin() as session:
                ended = workers.end_worker(session, name, uid, disrupted=disrupted)
            if ended:
                log.info("pod_gone", pod=name, disrupted=disrupted, folds=ended)

    def _do(self, change: Change, template: Template, need: Need | None, job: Manifest | None) -> None:
        name = "" if job is None else job["metadata"]["name"]
        match change:
            case "create":
                assert need is not None  # noqa: S101 - a Job is created only for a study
                created = template.job(study=need.name, study_id=need.id, workers=need.workers)
                name = created["metadata"]["name"]
                try:
                    self._cluster.create("batch", "jobs", created)
                except Conflict:
                    # The old Job is being deleted, or the watch has not reported the new one yet.
                    return
            case "delete":
                self._cluster.delete("batch", "jobs", name)
            case "suspend":
                self._cluster.patch("batch", "jobs", name, {"spec": {"suspend": True}})
            case "resume":
                self._cluster.patch("batch", "jobs", name, {"spec": {"suspend": False}})
            case "fail":
                # The deadline is the only field by which a client can fail a Job and so keep its pods' ends.
                self._cluster.patch("batch", "jobs", name, {"spec": {"activeDeadlineSeconds": 1}})
            case "resize":
                assert need is not None  # noqa: S101 - a Job is resized only for a study
                changes: Manifest = {
                    "metadata": {"annotations": {WORKERS_ANNOTATION: str(need.workers)}},
                    "spec": {"parallelism": need.workers},
                }
                self._cluster.patch("batch", "jobs", name, changes)
            case _:
                assert_never(change)
        log.info("worker_job_changed", job=name, change=change, study=need.name if need else None)

    def _update_queue(self, need: Need | None, job: Manifest | None) -> None:
        """Make Kueue take a paused study's Job out of its queue, and put a running study's Job back."""
        if need is None or job is None or not queued(job):
            return
        active = need.state == StudyState.RUNNING or need.folds_under_way > 0
        workload = self._reasons_of(job)[1]
        if workload is None or need.state.over or bool(workload["spec"].get("active", True)) == active:
            return
        self._cluster.patch(
            "kueue.x-k8s.io", "workloads", workload["metadata"]["name"], {"spec": {"active": active}}
        )
        self._reasons.pop(job["metadata"]["uid"], None)

    def _ask_reasons(self, jobs: Sequence[Manifest]) -> None:
        for job in jobs:
            if not worker_jobs.ended(job) and not self._pods_of(_study_of(job)):
                self._reasons_of(job)

    def _reasons_of(self, job: Manifest) -> tuple[list[Manifest], Manifest | None]:
        uid = job["metadata"]["uid"]
        at, events, workload = self._reasons.get(uid, (-REASONS_SECONDS, [], None))
        if time.monotonic() - at < REASONS_SECONDS:
            return events, workload
        try:
            events = self._cluster.list("", "events", fieldSelector=f"involvedObject.uid={uid}")["items"]
            if queued(job):
                label = f"kueue.x-k8s.io/job-uid={uid}"
                found = self._cluster.list("kueue.x-k8s.io", "workloads", labelSelector=label)["items"]
                workload = found[0] if found else None
        except FoldwiseError as error:
            log.warning("reasons_unknown", job=job["metadata"]["name"], error=error.message)
        alive = {job["metadata"]["uid"] for job in (self._jobs.all() if self._jobs else [])}
        self._reasons = {known: reason for known, reason in self._reasons.items() if known in alive}
        self._reasons[uid] = (time.monotonic(), events, workload)
        return events, workload

    def _job_of(self, study: str) -> Manifest | None:
        jobs = [] if self._jobs is None else self._jobs.all()
        return next((job for job in jobs if _study_of(job) == study), None)

    def _pods_of(
        self, study: str, without: Collection[str] = frozenset({"Failed", "Succeeded"})
    ) -> list[Manifest]:
        pods = [] if self._pods is None else self._pods.all()
        return [
            pod for pod in pods if _study_of(pod) == study and pod.get("status", {}).get("phase") not in without
        ]


def _study_of(item: Manifest) -> str:
    return str(item["metadata"].get("labels", {}).get(STUDY_LABEL, ""))


def _disrupted(pod: Manifest) -> bool:
    """Whether a pod was evicted, preempted or deleted; one that ended by itself, as without memory, was not."""
    if pod["metadata"].get("deletionTimestamp"):
        return True
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(c["type"] == "DisruptionTarget" and c["status"] == "True" for c in conditions)
