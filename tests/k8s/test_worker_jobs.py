"""What a study's Job should be, and what its state means, on objects as an API server of 1.34 wrote them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from coordinator.wanted_jobs import Change, Need, wanted_change
from k8s.cluster import Cluster
from k8s.unusable_machines import each_node_once, no_machine_is_left, on_unusable_machines
from k8s.worker_jobs import Template, job_name, pod_view, why_stalled
from services.contracts import StudyState
from services.errors import InvalidInput

Manifest = dict[str, Any]

JOB: Manifest = {
    "metadata": {
        "name": "f-foldwise-s-1",
        "labels": {"foldwise/study": "s"},
        "annotations": {"foldwise/workers": "2"},
    },
    "spec": {"parallelism": 2, "suspend": False},
    "status": {},
}
QUEUED: Manifest = JOB | {
    "metadata": JOB["metadata"] | {"labels": {"kueue.x-k8s.io/queue-name": "q", "foldwise/study": "s"}}
}


def need(state: StudyState = StudyState.RUNNING, workers: int = 2, folds: int = 0) -> Need:
    return Need(id=1, name="s", state=state, workers=workers, folds_under_way=folds)


def ended(kind: str) -> Manifest:
    return JOB | {"status": {"conditions": [{"type": kind, "status": "True"}]}}


def suspended(job: Manifest = JOB) -> Manifest:
    return job | {"spec": {"parallelism": 2, "suspend": True}}


def pod(phase: str, **status: Any) -> Manifest:
    return {
        "metadata": {"name": f"p-{phase}", "uid": "u"},
        "spec": {"containers": [{"name": "worker", "resources": {"limits": {"nvidia.com/gpu": 1, "cpu": 2}}}]},
        "status": {"phase": phase, **status},
    }


UNSCHEDULABLE = pod(
    "Pending",
    conditions=[
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        }
    ],
)
NO_IMAGE = pod(
    "Pending",
    containerStatuses=[
        {"state": {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "foldwise"'}}}
    ],
)
OVER = (StudyState.COMPLETE, StudyState.STOPPED)


@pytest.mark.parametrize(
    ("asked", "job", "pods", "change"),
    [
        (need(), None, [], "create"),
        (need(workers=0), None, [], None),
        (need(StudyState.DRAFT), None, [], None),
        (need(StudyState.PAUSED), None, [], None),
        (need(StudyState.COMPLETE), None, [], None),
        (need(), JOB, [pod("Running")], None),
        (need(workers=4), JOB, [pod("Running")], "resize"),
        (need(workers=0), JOB, [pod("Running")], "resize"),
        (need(), suspended(), [], "resume"),
        # Kueue admits it when there is room.
        (need(), suspended(QUEUED), [], None),
        (need(StudyState.PAUSED, folds=1), JOB, [pod("Running")], None),
        (need(StudyState.PAUSED), JOB, [pod("Running")], "suspend"),
        (need(StudyState.PAUSED), suspended(), [], None),
        (need(StudyState.PAUSED), QUEUED, [pod("Running")], None),
        (need(StudyState.PAUSED), ended("Failed"), [], None),
        (need(), ended("Complete"), [pod("Succeeded")], "delete"),
        (need(), ended("Failed"), [], None),
        (None, JOB, [pod("Running")], "delete"),
        (need(StudyState.DRAFT), JOB, [], "delete"),
        *((need(state), JOB, [pod("Running"), UNSCHEDULABLE], None) for state in OVER),
        *((need(state), JOB, [UNSCHEDULABLE], "delete") for state in OVER),
        *((need(state), JOB, [pod("Succeeded"), UNSCHEDULABLE], "delete") for state in OVER),
        # The Job's own controller is about to say that it is complete.
        *((need(state), JOB, [pod("Succeeded")], None) for state in OVER),
        *((need(state), suspended(), [], "delete") for state in OVER),
        *((need(state), ended("Complete"), [], None) for state in OVER),
        (None, JOB | {"metadata": JOB["metadata"] | {"deletionTimestamp": "2026-11-23T00:00:00Z"}}, [], None),
    ],
)
def test_a_job_becomes_what_its_study_says(
    asked: Need | None, job: Manifest | None, pods: list[Manifest], change: Change | None
) -> None:
    assert wanted_change(asked, job, pods) == change


FAILED_CREATE = {
    "type": "Warning",
    "reason": "FailedCreate",
    "message": 'Error creating: pods "p" is forbidden: exceeded quota: none',
    "metadata": {"creationTimestamp": "2026-11-23T00:00:00Z"},
}
POLICY = {
    "type": "Failed",
    "status": "True",
    "reason": "PodFailurePolicy",
    "message": "Container worker for pod n/p failed with exit code 64 matching FailJob rule at index 2",
}
WAITING = {
    "status": {
        "conditions": [{"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "no GPU"}]
    }
}


@pytest.mark.parametrize(
    ("job", "pods", "events", "workload", "said"),
    [
        (JOB, [], [], None, None),
        (JOB, [pod("Running"), UNSCHEDULABLE], [FAILED_CREATE], None, None),
        (JOB, [pod("Pending")], [], None, None),
        (
            JOB,
            [UNSCHEDULABLE],
            [],
            None,
            "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        ),
        (JOB, [NO_IMAGE], [], None, 'ImagePullBackOff: Back-off pulling image "foldwise"'),
        (JOB, [], [FAILED_CREATE], None, f"FailedCreate: {FAILED_CREATE['message']}"),
        (JOB, [], [FAILED_CREATE | {"type": "Normal"}], None, None),
        (
            JOB | {"status": {"conditions": [POLICY]}},
            [],
            [FAILED_CREATE],
            None,
            f"the Job has failed: PodFailurePolicy: {POLICY['message']}",
        ),
        (suspended(QUEUED), [], [], WAITING, "Kueue: Pending: no GPU"),
        (suspended(QUEUED), [], [], None, None),
    ],
)
def test_why_no_worker_runs(
    job: Manifest, pods: list[Manifest], events: list[Manifest], workload: Manifest | None, said: str | None
) -> None:
    assert why_stalled(job, pods, events, workload) == said


# --- Machines that cannot run a worker -------------------------------------------------------------------

LOG = """{"event": "worker_started"}
foldwise: a GPU is required (--require-gpu): torch sees no GPU; attach one
{"event": "worker_ended", "exit_code": 69}
"""


def unusable(minute: int, node: str = "gpu-1", *, code: int = 69, message: str = LOG) -> Manifest:
    """A pod of the Job that ended with this code."""
    ended = {"exitCode": code, "finishedAt": f"2026-11-23T10:{minute:02}:00Z", "message": message}
    status = pod("Failed", containerStatuses=[{"name": "worker", "state": {"terminated": ended}}])
    metadata = {"name": f"p-{minute}", "uid": f"u-{minute}", "ownerReferences": [{"uid": "job"}]}
    return {**status, "metadata": metadata, "spec": {**status["spec"], "nodeName": node}}


OWNER: Manifest = {"metadata": {"uid": "job"}, "spec": {"backoffLimit": 2}, "status": {}}
TOLD = "a GPU is required (--require-gpu): torch sees no GPU; attach one"


def test_pods_on_unusable_machines_are_found_in_the_order_of_their_ends() -> None:
    of_another_job = unusable(2)
    of_another_job["metadata"]["ownerReferences"] = [{"uid": "older"}]
    pods = [unusable(5, "b"), of_another_job, unusable(1), unusable(3, code=1), pod("Running"), unusable(4)]
    found = on_unusable_machines(pods, OWNER)
    assert [p["metadata"]["name"] for p in found] == ["p-1", "p-4", "p-5"]
    assert [p["metadata"]["name"] for p in each_node_once(found)] == ["p-4", "p-5"]


def test_a_pod_on_an_unusable_machine_says_which_and_why() -> None:
    view = pod_view(unusable(1))
    assert (view.phase, view.node, view.reason, view.message) == ("Failed", "gpu-1", "exit code 69", TOLD)
    silent = pod_view(unusable(1, message=""))
    assert (silent.reason, silent.message) == ("exit code 69", None)
    assert pod_view(unusable(1, message="Killed\n")).message == "Killed"


LATE = {
    "type": "Failed",
    "status": "True",
    "reason": "DeadlineExceeded",
    "message": "Job was active longer than specified deadline",
}


@pytest.mark.parametrize(
    ("job", "pods", "ended", "said"),
    [
        (JOB, [], [unusable(1)], f"exit code 69 on node gpu-1: {TOLD}"),
        (
            JOB,
            [pod("Pending")],
            [unusable(1), unusable(2, "gpu-2")],
            f"2 pods ended with exit code 69, the last one on node gpu-2: {TOLD}",
        ),
        (JOB, [pod("Running")], [unusable(1)], None),
        (
            JOB | {"status": {"conditions": [LATE]}},
            [],
            [unusable(1)],
            f"the Job has failed: exit code 69 on node gpu-1: {TOLD}",
        ),
        (
            JOB | {"status": {"conditions": [LATE]}},
            [],
            [],
            f"the Job has failed: DeadlineExceeded: {LATE['message']}",
        ),
        (
            JOB,
            [],
            [unusable(1, message="")],
            "exit code 69 on node gpu-1: it left no message; see its log",
        ),
    ],
)
def test_unusable_machines_are_the_reason_why_no_worker_runs(
    job: Manifest, pods: list[Manifest], ended: list[Manifest], said: str | None
) -> None:
    assert why_stalled(job, pods, [], None, ended) == said


SCHEDULED = {**pod("Pending"), "spec": {**pod("Pending")["spec"], "nodeName": "gpu-2"}}


@pytest.mark.parametrize(
    ("ends", "living", "since", "hopeless"),
    [
        ([1, 2, 3], [], None, True),
        ([1, 2], [], None, False),
        ([1, 2, 3], [UNSCHEDULABLE], None, True),
        # A worker runs, or is about to, on another machine.
        ([1, 2, 3], [SCHEDULED], None, False),
        # Another worker made progress in between.
        ([1, 2, 3], [], datetime(2026, 11, 23, 10, 2, tzinfo=UTC), False),
        ([1, 2, 3, 4, 5], [], datetime(2026, 11, 23, 10, 2, tzinfo=UTC), True),
    ],
)
def test_a_job_without_a_usable_machine_is_given_up(
    ends: list[int], living: list[Manifest], since: datetime | None, hopeless: bool
) -> None:
    assert no_machine_is_left([unusable(end) for end in ends], living, OWNER, since) == hopeless


def test_a_hopeless_job_fails_once_and_a_suspended_or_ended_one_does_not() -> None:
    assert wanted_change(need(), JOB, [], is_hopeless=True) == "fail"
    assert wanted_change(need(), ended("Failed"), [], is_hopeless=True) is None
    assert wanted_change(need(StudyState.PAUSED), suspended(), [], is_hopeless=True) is None
    assert wanted_change(need(StudyState.COMPLETE), JOB, [UNSCHEDULABLE], is_hopeless=True) == "delete"


def test_a_pod_as_people_read_it() -> None:
    view = pod_view(UNSCHEDULABLE)
    assert (view.phase, view.node, view.gpus) == ("Pending", None, {"nvidia.com/gpu": "1"})
    assert view.reason == "Unschedulable"
    gone = pod("Running") | {"metadata": {"name": "p", "uid": "u", "deletionTimestamp": "now"}}
    assert pod_view(gone).phase == "Terminating"
    evicted = pod("Failed", reason="Evicted", message="The node was low on resource: memory.")
    assert pod_view(evicted).message == "The node was low on resource: memory."


@pytest.mark.parametrize(
    ("owner", "study", "name"),
    [
        ("r-foldwise-worker", "s", "r-foldwise-s-7"),
        ("foldwise-worker", "a" * 63, "foldwise-" + "a" * 46 + "-7"),
        ("x" * 40 + "-worker", "paper", "x" * 24 + "-paper-7"),
    ],
)
def test_names_of_jobs_fit(owner: str, study: str, name: str) -> None:
    made = job_name(owner, study, 7)
    assert made == name
    assert len(made) <= 57


@pytest.mark.parametrize(
    "content", ["", "[]", "{kind: Job}", "{spec: {template: {spec: {containers: [{name: x}]}}}}"]
)
def test_a_template_that_is_no_job_is_refused(content: str) -> None:
    config_map = {"metadata": {"name": "t", "uid": "u"}, "data": {"job.yaml": content}}
    with pytest.raises(InvalidInput, match="--worker-template t"):
        Template.of(config_map)


def test_outside_a_cluster_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InvalidInput, match="works only inside Kubernetes"):
        Cluster.in_cluster()
