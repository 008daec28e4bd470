"""Studies' Jobs on a real control plane, with the chart installed and the rights that its Role grants."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from coordinator.studies import life
from coordinator.study_workers import WorkerJobs
from helm.generate import CHART
from k8s.cluster import Cluster
from services.errors import FoldwiseError
from tests.cluster.control_plane import ControlPlane, control_plane, wait_until, why_not
from tests.harness.coordinator_harness import Harness
from tests.harness.machines_with_gpus import OLD_DRIVER, machine
from tests.harness.programs import program

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]

Manifest = dict[str, Any]
NODE = {"cpu": "64", "memory": "256Gi", "pods": "110", "nvidia.com/gpu": "4"}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("kubernetes")) as running:
        yield running


@pytest.fixture
def harness(engine: Engine, cache_root: Path) -> Harness:
    return Harness(engine, cache_root)


def helm(plane: ControlPlane, *arguments: str) -> str:
    done = subprocess.run(
        [program("helm"), *arguments],
        env={**os.environ, "KUBECONFIG": str(plane.kubeconfig())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def install(plane: ControlPlane, namespace: str, *arguments: str) -> str:
    # The claims need a kubelet's node and are of no interest here.
    size = ("--set", "worker.resources.limits.nvidia\\.com/gpu=1")
    where = ("--namespace", namespace, "--create-namespace")
    return helm(plane, "upgrade", "--install", "f", str(CHART), *where, *size, *arguments)


class Installation:
    """A namespace with the chart in it, a harness beside it, and the thread's rounds taken one by one."""

    def __init__(self, plane: ControlPlane, namespace: str, harness: Harness) -> None:
        self.plane = plane
        self.namespace = namespace
        self.harness = harness
        self.cluster: Cluster = plane.as_account(namespace, "f-foldwise")
        self.jobs = WorkerJobs(self.cluster, "f-foldwise-worker", harness.sessions, is_leader=lambda: True)

    def until(self, condition: Callable[[], Any]) -> Any:
        def look() -> Any:
            self.jobs.round()
            return condition()

        return wait_until(look)

    def objects(self, kind: str) -> list[Manifest]:
        group = "/apis/batch/v1" if kind == "jobs" else "/api/v1"
        path = f"{group}/namespaces/{self.namespace}/{kind}"
        items: list[Manifest] = self.plane.must("GET", f"{path}?labelSelector=foldwise/study")["items"]
        return items

    def job(self) -> Manifest:
        (job,) = self.until(lambda: self.objects("jobs"))
        return dict(job)

    def pods(self, number: int) -> list[Manifest]:
        found: list[Manifest] = self.until(
            lambda: len(pods := self.living()) == number and self.knows(number) and pods
        )
        return found

    def living(self) -> list[Manifest]:
        return [
            pod
            for pod in self.objects("pods")
            if pod["status"]["phase"] in {"Pending", "Running"} and not pod["metadata"].get("deletionTimestamp")
        ]

    def others(self, pod: Manifest) -> list[Manifest]:
        return [other for other in self.living() if other["metadata"]["uid"] != pod["metadata"]["uid"]]

    def knows(self, number: int) -> bool:
        return len([p for p in self.jobs.view("s").pods if p.phase in {"Pending", "Running"}]) == number

    def study(self, change: Callable[..., Any], *arguments: Any) -> None:
        with self.harness.sessions.begin() as session:
            change(session, "s", *arguments)

    def outcome(self, lease: str) -> str | None:
        with self.harness.engine.connect() as connection:
            query = text("SELECT outcome FROM foldwise.leases WHERE id = :id")
            found: str | None = connection.scalar(query, {"id": lease})
            return found

    def delete(self, pod: Manifest) -> None:
        # As a node that was taken back: nobody waits for its kubelet.
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}?gracePeriodSeconds=0"
        self.plane.must("DELETE", path)

    def run(self, pod: Manifest) -> None:
        self.plane.set_status(self.namespace, pod["metadata"]["name"], {"phase": "Running"})

    def end(
        self, pod: Manifest, code: int, conditions: list[Manifest] | None = None, message: str = ""
    ) -> None:
        terminated = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}
        state = {"name": "worker", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
        self.plane.set_status(
            self.namespace,
            pod["metadata"]["name"],
            {
                "phase": "Failed" if code else "Succeeded",
                "conditions": conditions or [],
                "containerStatuses": [{**state, "state": {"terminated": terminated}}],
            },
        )


@pytest.fixture
def installation(
    plane: ControlPlane, harness: Harness, request: pytest.FixtureRequest
) -> Iterator[Installation]:
    namespace = request.node.name.replace("_", "-").removeprefix("test-")[:40].strip("-")
    install(plane, namespace)
    made = Installation(plane, namespace, harness)
    yield made
    made.jobs._ending = True
    for watched in (made.jobs._jobs, made.jobs._pods):
        if watched is not None:
            watched.stop()
    made.cluster.close()


def test_helm_keeps_its_secrets(plane: ControlPlane) -> None:
    def stored() -> Any:
        return plane.must("GET", "/api/v1/namespaces/kept/secrets/f-foldwise-auth")["data"]

    notes = install(plane, "kept")
    assert notes.count("--namespace kept") >= 4
    first = stored()
    assert len(set(first.values())) == 3
    install(plane, "kept", "--set", "coordinator.image.tag=v2")
    assert stored() == first
    helm(plane, "uninstall", "f", "--namespace", "kept")
    install(plane, "kept")
    assert stored() == first


def test_pods_of_the_chart_pass_the_restricted_standard(installation: Installation) -> None:
    """The API server's own admission plugin judges the worker's pods, made by the Job controller."""
    enforce = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    path = f"/api/v1/namespaces/{installation.namespace}"
    installation.plane.must("PATCH", path, enforce, "application/merge-patch+json")
    installation.harness.create(workers=2)
    assert len(installation.pods(2)) == 2


def test_a_study_has_a_job_from_its_start_to_its_end(installation: Installation) -> None:
    installation.harness.create(workers=2)
    job = installation.job()
    assert job["metadata"]["name"].startswith("f-foldwise-s-")
    assert job["metadata"]["ownerReferences"][0]["name"] == "f-foldwise-worker"
    assert job["spec"]["parallelism"] == 2
    assert job["spec"]["completions"] is None if "completions" in job["spec"] else True
    one, two = installation.pods(2)
    assert {"name": "FOLDWISE_STUDY", "value": "s"} in one["spec"]["containers"][0]["env"]
    for pod in (one, two):
        installation.run(pod)
    installation.study(life.set_workers, 4)
    installation.pods(4)
    installation.study(life.set_workers, 1)
    installation.pods(1)
    last = installation.living()[0]
    installation.run(last)
    installation.until(lambda: any(pod.phase == "Running" for pod in installation.jobs.view("s").pods))
    installation.study(life.stop, "enough")
    installation.jobs.round()
    # It ends of itself: the worker hears from the coordinator that the study is over.
    assert installation.job()["metadata"].get("deletionTimestamp") is None
    installation.end(last, 0)
    installation.until(lambda: (installation.job()["status"].get("succeeded") or 0) >= 1)


def test_pausing_waits_for_folds_under_way_and_resuming_goes_on(installation: Installation) -> None:
    installation.harness.create()
    (pod,) = installation.pods(1)
    held = installation.harness.must_claim(pod["metadata"]["name"])
    installation.study(life.pause)
    for _ in range(3):
        installation.jobs.round()
    assert not installation.job()["spec"].get("suspend")
    installation.harness.report(held, more=False)
    installation.until(lambda: installation.job()["spec"].get("suspend"))
    installation.until(lambda: not installation.living())
    assert installation.jobs.view("s").suspended
    installation.study(life.resume)
    installation.pods(1)


def test_the_fold_of_a_pod_that_is_taken_away_is_free_at_once(installation: Installation) -> None:
    installation.harness.create()
    (pod,) = installation.pods(1)
    held = installation.harness.must_claim(pod["metadata"]["name"])
    installation.delete(pod)
    installation.until(lambda: installation.outcome(held.lease.id) == "released")
    (another,) = installation.until(lambda: installation.others(pod))
    again = installation.harness.must_claim(another["metadata"]["name"])
    assert (again.fold, again.lease.term) == (held.fold, held.lease.term + 1)
    # Evicted, as by a node under pressure: it is known by a condition, and not counted against the Job either.
    target = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": ""}
    installation.end(another, 137, [target])
    installation.until(lambda: installation.outcome(again.lease.id) == "released")
    installation.until(lambda: len(installation.living()) == 1)
    assert installation.job()["status"].get("failed", 0) == 0 or not installation.job()["status"].get(
        "conditions"
    )


def test_a_pod_that_dies_of_itself_counts_against_its_fold(installation: Installation) -> None:
    installation.harness.create()
    (pod,) = installation.pods(1)
    held = installation.harness.must_claim(pod["metadata"]["name"])
    installation.end(pod, 137)

    def expired() -> bool:
        installation.harness.leader.round()
        return installation.outcome(held.lease.id) == "lapsed"

    installation.until(expired)


def test_stalled_in_the_scheduler_s_words_until_there_is_a_node(installation: Installation) -> None:
    installation.harness.create()
    installation.pods(1)
    said = installation.until(lambda: installation.jobs.stalled("s"))
    assert said.startswith("Unschedulable: ")
    assert "nodes available" in said or "nodes are available" in said
    (pod,) = installation.jobs.view("s").pods
    assert (pod.phase, pod.node, pod.gpus) == ("Pending", None, {"nvidia.com/gpu": "1"})


def test_stalled_in_the_words_of_a_quota(installation: Installation) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    installation.plane.must("POST", f"/api/v1/namespaces/{installation.namespace}/resourcequotas", quota)
    installation.harness.create()
    said = installation.until(lambda: installation.jobs.stalled("s"))
    assert said.startswith("FailedCreate: ")
    assert "exceeded quota" in said


def test_a_job_that_failed_says_why_and_resuming_makes_another(installation: Installation) -> None:
    installation.harness.create()
    (pod,) = installation.pods(1)
    first = installation.job()
    # 64: its token or cache is wrong, and no other pod would fare better.
    installation.end(pod, 64)
    said = installation.until(lambda: (s := installation.jobs.stalled("s")) and "PodFailurePolicy" in s and s)
    assert "exit code 64" in said
    installation.jobs.round()
    assert installation.job()["metadata"]["uid"] == first["metadata"]["uid"]
    installation.study(life.resume)
    installation.jobs.retry("s")
    installation.until(
        lambda: (
            installation.objects("jobs") and installation.job()["metadata"]["uid"] != first["metadata"]["uid"]
        )
    )


def test_exit_code_75_is_replaced_and_not_counted(installation: Installation) -> None:
    # One failure that counts would fail the Job.
    install(installation.plane, installation.namespace, "--set", "worker.backoffLimit=0")
    installation.harness.create()
    (pod,) = installation.pods(1)
    installation.end(pod, 75)
    installation.until(lambda: installation.others(pod))
    (another,) = installation.pods(1)
    installation.end(another, 1)
    said = installation.until(lambda: installation.jobs.stalled("s"))
    assert said.startswith("the Job has failed: BackoffLimitExceeded")


def run_worker_of(pod: Manifest, machine: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The program of the pod's worker container, run on a machine with this environment."""
    (container,) = pod["spec"]["containers"]
    told = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    told = {name: value for name, value in told.items() if name.startswith("FOLDWISE_")}
    told.pop("FOLDWISE_TOKEN_FILE")
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *container["args"]],
        env={**os.environ, **told, **machine, "FOLDWISE_TOKEN": "none"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_a_pod_without_a_usable_gpu_is_replaced_until_no_machine_is_left(installation: Installation) -> None:
    install(installation.plane, installation.namespace, "--set", "worker.backoffLimit=1")
    installation.harness.create()
    (pod,) = installation.pods(1)
    ended = run_worker_of(pod, machine(0, error=OLD_DRIVER))
    assert ended.returncode == 69, ended.stdout
    # The kubelet reports the end of the log, as the chart asks it to.
    assert pod["spec"]["containers"][0]["terminationMessagePolicy"] == "FallbackToLogsOnError"
    installation.end(pod, ended.returncode, message=ended.stdout[-2048:])
    ended_at = time.monotonic()
    why = "a GPU is required (--require-gpu): NVIDIA's driver here supports CUDA up to 11.4"
    expected = f"exit code 69 on node unknown: {why}"
    installation.until(lambda: str(installation.jobs.stalled("s")).startswith(expected))
    (view,) = installation.jobs.view("s").pods
    assert (view.phase, view.reason) == ("Failed", "exit code 69")
    assert str(view.message).startswith(why)
    # It counts as no failure, but its replacement comes after a pause: nothing spins.
    (another,) = installation.until(lambda: installation.others(pod))
    assert time.monotonic() - ended_at > 5
    assert not installation.job()["status"].get("failed")
    installation.end(another, 69, message=ended.stdout[-2048:])
    said = installation.until(
        lambda: (s := installation.jobs.stalled("s")) and s.startswith("the Job has failed") and s
    )
    assert f"the Job has failed: 2 pods ended with exit code 69, the last one on node unknown: {why}" in said
    assert installation.living() == []
    installation.study(life.resume)
    installation.jobs.retry("s")
    installation.pods(1)


def test_more_trials_for_a_study_that_was_complete_make_another_job(installation: Installation) -> None:
    installation.harness.create(trials=1)
    (pod,) = installation.pods(1)
    first = installation.job()["metadata"]["uid"]
    installation.run(pod)
    installation.until(lambda: installation.jobs.view("s").pods[0].phase == "Running")
    assignment = installation.harness.claim(pod["metadata"]["name"])
    while assignment is not None:
        assignment = installation.harness.report(assignment).next
    installation.harness.leader.round()
    assert installation.harness.study().state == "complete"
    installation.end(pod, 0)
    installation.until(lambda: (installation.job()["status"].get("succeeded") or 0) >= 1)
    installation.study(life.set_budget, 2)
    installation.until(lambda: installation.objects("jobs") and installation.job()["metadata"]["uid"] != first)


def test_a_release_that_goes_takes_its_jobs_along(installation: Installation) -> None:
    installation.harness.create()
    installation.pods(1)
    helm(installation.plane, "uninstall", "f", "--namespace", installation.namespace)
    wait_until(lambda: not installation.objects("jobs"))


def test_the_role_grants_nothing_else(installation: Installation) -> None:
    for verb, resource in (("list", "secrets"), ("list", "configmaps"), ("delete", "pods"), ("list", "nodes")):
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{installation.namespace}:f-foldwise",
                "resourceAttributes": {"namespace": installation.namespace, "verb": verb, "resource": resource},
            },
        }
        answer = installation.plane.must("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        assert not answer["status"]["allowed"], (verb, resource)
    stranger = Cluster(
        installation.plane.url,
        "kube-system",
        token_file=installation.plane.folder / f"{installation.namespace}-f-foldwise.token",
        ca_file=installation.plane.folder / "ca.crt",
    )
    with pytest.raises(FoldwiseError, match="forbidden"):
        stranger.list("batch", "jobs")
    stranger.close()
