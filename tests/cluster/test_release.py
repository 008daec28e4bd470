"""The chart on a real cluster, from `helm install` to a study's end, and everything that goes wrong meanwhile.

The tests build on each other: they are one release's life, in order. Nothing is played here: kubelet, images,
database, volumes and workers are real; only the GPUs are declared without being there, so folds are trained on
the CPU.
"""

from __future__ import annotations

import base64
import json
import subprocess
import time
from datetime import datetime
from http import HTTPStatus
from typing import Any

import httpx
import pytest

from cli.cluster_access import KubeContext, Kubectl
from tests.cluster.release import NAME, VERSION, Release, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

OURS = "app.kubernetes.io/part-of=foldwise"
COORDINATOR = "app.kubernetes.io/component=coordinator"


def seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def test_install_to_the_first_fold(release: Release) -> None:
    began = time.time()
    notes = release.install()
    assert f"--namespace {release.namespace}" in notes
    release.wait_for_rollout()
    ready = time.time()
    release.wait_for_caches()
    cached = time.time()
    release.create("first", "--set", "workers=2")
    (first, *_) = until(lambda: release.leases("first"))
    granted = datetime.fromisoformat(first["granted_at"]).timestamp()
    release.note("helm install to a ready coordinator and dashboard", f"{ready - began:.0f} s")
    release.note("helm install to a filled cache", f"{cached - began:.0f} s")
    release.note("helm install to the first fold", f"{granted - began:.0f} s")


def test_a_study_has_two_pods_with_a_gpu_each_until_it_ends(release: Release) -> None:
    pods = release.running("first", 2)
    for pod in pods:
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    view = release.foldwise("study", "workers", "first")
    assert all(pod["metadata"]["name"] in view for pod in pods)
    release.wait_for_end("first")
    release.check("first")
    job = until(lambda: completed(release, "first"))
    assert not job["status"].get("failed")
    # Its GPUs are free.
    until(lambda: not release.pods("first"))
    logs = release.kubectl("logs", "--selector=foldwise/study=first", "--tail=10")
    assert "fold_done" in logs


def test_helm_test_passes(release: Release) -> None:
    assert "Phase:          Succeeded" in release.helm("test", NAME)


def test_doctor_finds_nothing_wrong(release: Release) -> None:
    said = release.foldwise("doctor")
    assert "nvidia.com/gpu" in said


def test_dashboard_page_and_api_answer_through_their_services(release: Release) -> None:
    kubectl = Kubectl(KubeContext(namespace=release.namespace))
    with kubectl.forward(NAME, 8080) as url:
        assert httpx.get(f"{url}/readyz").json()["revision"]
        page = httpx.get(f"{url}/", headers={"Accept": "text/html"}, follow_redirects=True)
        assert "Sign in" in page.text
    token = base64.b64decode(secret(release)["read-token"]).decode()
    with kubectl.forward(f"{NAME}-dashboard", 8081) as url:
        assert httpx.get(f"{url}/api/studies").status_code == HTTPStatus.UNAUTHORIZED
        assert "first" in httpx.get(f"{url}/api/studies", auth=("me", token)).text


def completed(release: Release, study: str) -> Any:
    for job in release.objects("jobs", f"foldwise/study={study}"):
        conditions = job["status"].get("conditions", ())
        if any(c["type"] == "Complete" and c["status"] == "True" for c in conditions):
            return job
    return None


def went_on(release: Release, study: str, lost: dict[str, Any], since: str, what: str) -> None:
    """Wait until the fold of a lost lease is leased again, and write down how long that took."""

    def again() -> Any:
        same = ("number", "fold")
        return [
            lease
            for lease in release.leases(study)
            if all(lease[key] == lost[key] for key in same) and lease["term"] > lost["term"]
        ]

    (granted, *_) = until(again)
    (ended,) = [lease for lease in release.leases(study) if lease["id"] == lost["id"]]
    free = seconds_between(since, ended["ended_at"])
    leased = seconds_between(since, granted["granted_at"])
    release.note(what, f"fold free after {free:.1f} s, leased again after {leased:.1f} s")


def at_work(release: Release, study: str, workers: int = 2) -> list[dict[str, Any]]:
    """Wait until so many workers of a study are in the middle of a fold."""
    found: list[dict[str, Any]] = until(lambda: len(held := release.held(study)) >= workers and held)
    return found


def finish(release: Release, study: str, trials: int = 2) -> None:
    release.wait_for_end(study)
    release.check(study, trials)
    until(lambda: not release.pods(study))


TOGETHER = ("--set", "workers=2", "--set", "workers_per_trial=2")
"""Two workers that share the folds of one trial."""


def test_a_worker_deleted_in_a_fold(release: Release) -> None:
    release.create("deleted", *TOGETHER)
    (lease, *_) = at_work(release, "deleted")
    since = release.now()
    release.kubectl("delete", "pod", lease["worker"], "--wait=false")
    went_on(release, "deleted", lease, since, "worker pod deleted in a fold")
    release.running("deleted", 2)
    finish(release, "deleted")


def test_a_worker_that_is_killed_at_once(release: Release) -> None:
    """As on a node that was taken back: no SIGTERM reached it."""
    release.create("killed", *TOGETHER)
    (lease, *_) = at_work(release, "killed")
    since = release.now()
    release.kubectl("delete", "pod", lease["worker"], "--grace-period=0", "--force")
    went_on(release, "killed", lease, since, "worker pod deleted by force")
    finish(release, "killed")


def test_a_worker_that_is_evicted(release: Release) -> None:
    release.create("evicted", *TOGETHER)
    (lease, *_) = at_work(release, "evicted")
    since = release.now()
    name = lease["worker"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{release.namespace}/pods/{name}/eviction"
    release.kubectl("create", "--raw", path, "--filename=-", given=json.dumps(body))
    went_on(release, "evicted", lease, since, "worker pod evicted")
    finish(release, "evicted")
    (job,) = release.objects("jobs", "foldwise/study=evicted")
    # Not counted against it: the pod was disrupted.
    assert not job["status"].get("failed")


def test_a_worker_that_is_killed_for_want_of_memory(release: Release) -> None:
    release.create("memory", *TOGETHER)
    (lease, *_) = at_work(release, "memory")
    since = release.now()
    # What is in /dev/shm is memory of the pod; at the limit the kernel kills its largest process.
    fill = "dd if=/dev/zero of=/dev/shm/fill bs=1M count=1500 2>/dev/null"
    command = ["kubectl", "--namespace", release.namespace, "exec", lease["worker"], "--", "sh", "-c", fill]
    subprocess.run(command, capture_output=True, check=False)
    went_on(release, "memory", lease, since, "worker killed for want of memory")
    (pod,) = [
        pod
        for pod in release.objects("pods", "foldwise/study=memory")
        if pod["metadata"]["name"] == lease["worker"]
    ]
    (container,) = pod["status"]["containerStatuses"]
    assert container["state"]["terminated"]["reason"] == "OOMKilled"
    finish(release, "memory")


def test_a_node_that_takes_no_more_pods(release: Release) -> None:
    release.create("cordoned", *TOGETHER)
    (lease, *_) = at_work(release, "cordoned")
    (node,) = {pod["spec"]["nodeName"] for pod in release.pods("cordoned", "Running")}
    release.kubectl("cordon", node)
    try:
        since = release.now()
        release.kubectl("delete", "pod", lease["worker"], "--wait=false")
        # The other worker goes on, and takes the fold over.
        went_on(release, "cordoned", lease, since, "worker pod deleted, its node cordoned")
        (waiting,) = until(lambda: release.pods("cordoned", "Pending"))
        seen = until(
            lambda: "unschedulable" in (said := release.foldwise("study", "workers", "cordoned")) and said
        )
        assert waiting["metadata"]["name"] in seen
    finally:
        release.kubectl("uncordon", node)
    finish(release, "cordoned")


def test_a_coordinator_that_is_deleted(release: Release) -> None:
    release.create("coordinator", *TOGETHER)
    at_work(release, "coordinator")
    since = release.now()
    before = len(release.leases("coordinator"))
    (pod,) = release.objects("pods", COORDINATOR)
    release.kubectl("delete", "pod", pod["metadata"]["name"])
    release.wait_for_rollout()
    release.note("coordinator deleted: ready again", f"{seconds_between(since, release.now()):.1f} s")
    granted = until(lambda: release.leases("coordinator")[before:])[0]["granted_at"]
    release.note("coordinator deleted: next fold", f"{seconds_between(since, granted):.1f} s")
    finish(release, "coordinator")
    # No fold was run twice: the workers had their leases all the time.
    assert all(lease["outcome"] == "done" for lease in release.leases("coordinator"))


def test_a_database_that_is_deleted(release: Release) -> None:
    release.create("database", *TOGETHER)
    at_work(release, "database")
    before = len(release.leases("database"))
    since = time.monotonic()
    release.kubectl("delete", "pod", f"{NAME}-postgresql-0")
    release.kubectl("wait", "pod", f"{NAME}-postgresql-0", "--for=condition=ready", "--timeout=300s")
    release.note("database deleted: ready again", f"{time.monotonic() - since:.1f} s")
    until(lambda: release.leases("database")[before:])
    release.note("database deleted: next fold", f"{time.monotonic() - since:.1f} s")
    finish(release, "database")


def test_an_upgrade_while_a_study_runs(release: Release) -> None:
    release.create("upgraded", *TOGETHER)
    at_work(release, "upgraded")
    (job,) = release.objects("jobs", "foldwise/study=upgraded")
    before = {pod["metadata"]["uid"] for pod in release.pods("upgraded", "Running")}
    next_tag = f"{VERSION}-next"
    tags = [f"--set={part}.image.tag={next_tag}" for part in ("coordinator", "dashboard", "worker")]
    release.install(*tags)
    release.wait_for_rollout()
    (pod,) = until(lambda: len(found := release.objects("pods", COORDINATOR)) == 1 and found)
    assert pod["spec"]["containers"][0]["image"].endswith(next_tag)
    # The Job under way keeps its pods and its image.
    assert before == {pod["metadata"]["uid"] for pod in release.pods("upgraded", "Running")}
    finish(release, "upgraded")
    assert [j["metadata"]["uid"] for j in release.objects("jobs", "foldwise/study=upgraded")] == [
        job["metadata"]["uid"]
    ]
    release.create("after", "--set", "trials=1")
    (pod,) = release.running("after", 1)
    assert pod["spec"]["containers"][0]["image"].endswith(next_tag)
    finish(release, "after", trials=1)


def test_a_study_that_is_paused_and_resumed(release: Release) -> None:
    release.create("paused", *TOGETHER)
    at_work(release, "paused")
    release.foldwise("study", "pause", "paused")
    until(lambda: not release.pods("paused"))
    (job,) = release.objects("jobs", "foldwise/study=paused")
    assert job["spec"]["suspend"]
    # Folds under way were finished and counted first.
    assert {lease["outcome"] for lease in release.leases("paused")} == {"done"}
    release.foldwise("study", "resume", "paused")
    finish(release, "paused")


def test_more_workers_than_gpus_then_more_gpus_then_one_worker(release: Release) -> None:
    release.create("resized", *TOGETHER, "--set", "workers_per_trial=4")
    release.running("resized", 2)
    release.foldwise("study", "workers", "resized", "4")
    until(lambda: len(release.pods("resized", "Pending")) == 2)
    said = until(
        lambda: (
            "Insufficient nvidia.com/gpu" in (said := release.foldwise("study", "workers", "resized")) and said
        )
    )
    assert said.count("Running") == 2
    release.declare_gpus(4)
    try:
        release.running("resized", 4)
        release.foldwise("study", "workers", "resized", "1")
        release.running("resized", 1)
        given_back = [lease for lease in release.leases("resized") if lease["outcome"] == "released"]
        release.note("4 workers to 1: folds given back", str(len(given_back)))
        finish(release, "resized")
    finally:
        release.declare_gpus(2)


DATABASE = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "database", "labels": {"app": "database"}},
    "spec": {
        "containers": [
            {
                "name": "postgres",
                "image": "postgres:18",
                "imagePullPolicy": "IfNotPresent",
                "env": [
                    {"name": "POSTGRES_USER", "value": "me"},
                    {"name": "POSTGRES_DB", "value": "studies"},
                    {"name": "POSTGRES_PASSWORD_FILE", "value": "/secret/password"},
                    {"name": "PGDATA", "value": "/var/lib/postgresql/18/docker"},
                ],
                "readinessProbe": {"exec": {"command": ["pg_isready", "-h", "127.0.0.1"]}, "periodSeconds": 1},
                "volumeMounts": [
                    {"name": "secret", "mountPath": "/secret"},
                    {"name": "run", "mountPath": "/var/run/postgresql"},
                ],
            }
        ],
        "volumes": [
            {"name": "secret", "secret": {"secretName": "database"}},
            {"name": "run", "emptyDir": {}},
        ],
    },
}


def test_an_external_database(release: Release, elsewhere: Release) -> None:
    """Somebody else's, named by a Secret; the schema is made by a hook before anything is installed."""
    stored = {"password": "p", "uri": "postgresql://me:p@database/studies"}
    metadata = {"name": "database"}
    elsewhere.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": stored})
    elsewhere.apply(DATABASE)
    ports = {"selector": {"app": "database"}, "ports": [{"port": 5432}]}
    elsewhere.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": ports})
    elsewhere.kubectl("wait", "pod/database", "--for=condition=ready", "--timeout=300s")
    elsewhere.install("--set=postgresql.enabled=false", "--set=externalDatabase.existingSecret=database")
    elsewhere.wait_for_rollout()
    elsewhere.wait_for_caches()
    elsewhere.create("outside", "--set", "trials=1")
    until(lambda: elsewhere.study("outside")["state"] == "complete")
    assert elsewhere.study("outside")["folds_done"] == 4
    elsewhere.helm("uninstall", NAME)
    until(lambda: not elsewhere.objects("pods", OURS))


def test_uninstall_leaves_no_pod_and_install_goes_on(release: Release) -> None:
    release.create("kept", *TOGETHER, "--set", "trials=3")
    at_work(release, "kept")
    until(lambda: any(lease["outcome"] == "done" for lease in release.leases("kept")))
    done = {lease["id"] for lease in release.leases("kept") if lease["outcome"] == "done"}
    token = secret(release)
    release.helm("uninstall", NAME)
    until(lambda: not release.objects("pods", OURS))
    claims = {claim["metadata"]["name"] for claim in release.objects("pvc")}
    assert claims == {"faces", f"{NAME}-cache", f"data-{NAME}-postgresql-0"}
    assert secret(release) == token
    began = time.monotonic()
    release.install()
    release.wait_for_rollout()
    release.note("helm install over what was kept: ready", f"{time.monotonic() - began:.0f} s")
    assert release.state("first") == "complete"
    assert done <= {lease["id"] for lease in release.leases("kept") if lease["outcome"] == "done"}
    finish(release, "kept", trials=3)


def secret(release: Release) -> Any:
    return json.loads(release.kubectl("get", "secret", f"{NAME}-auth", "--output=json"))["data"]
