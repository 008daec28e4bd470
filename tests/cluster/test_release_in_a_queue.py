"""Studies whose Jobs wait in Kueue: admission, a pause that makes room, fewer pods than asked, preemption."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import namespace
from tests.cluster.control_plane import folder_of_programs
from tests.cluster.release import PATIENCE, Release, run, until
from tests.harness.programs import program

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

API = "kueue.x-k8s.io/v1beta1"
OURS, OTHERS = "ours", "others"
"""Queues of two teams, a GPU for each, and both for whoever comes first."""


@pytest.fixture(scope="module")
def kueue(cluster: None) -> None:
    """The cluster's, or the one that was built for it."""
    if "workloads.kueue.x-k8s.io" in run("kubectl", "get", "crds", "--output=name"):
        return
    folder = folder_of_programs()
    if folder is None or not (folder / "kueue-chart").exists():
        pytest.skip("no Kueue; `tests/cluster/build-kubernetes kueue` builds it")
    image = ("repository=cluster.local/kueue", "tag=1", "pullPolicy=IfNotPresent")
    options = [f"--set=controllerManager.manager.image.{setting}" for setting in image]
    where = ("--namespace=kueue-system", "--create-namespace", "--wait", "--timeout=5m")
    run(program("helm"), "upgrade", "--install", "kueue", str(folder / "kueue-chart"), *where, *options)


@pytest.fixture(scope="module")
def queued(kueue: None) -> Iterator[Release]:
    with namespace(f"queued-{os.getpid()}") as release:
        release.declare_gpus(2)
        until(lambda: make_queues(release))
        release.install(f"--set=worker.kueue.queueName={OURS}", "--set=worker.kueue.minParallelism=1")
        release.wait_for_rollout()
        release.wait_for_caches()
        yield release


def make_queues(release: Release) -> bool:
    """False while Kueue's webhook does not answer yet."""
    resources = {"cpu": "100", "memory": "1Ti", "nvidia.com/gpu": "1"}
    quota = [{"name": name, "nominalQuota": amount} for name, amount in resources.items()]
    group = {"coveredResources": list(resources), "flavors": [{"name": "gpu", "resources": quota}]}
    items: list[dict[str, Any]] = [{"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": "gpu"}}]
    for team in (OURS, OTHERS):
        spec = {
            "cohort": "search",
            "namespaceSelector": {},
            "preemption": {"reclaimWithinCohort": "Any"},
            "resourceGroups": [group],
        }
        metadata = {"name": team, "namespace": release.namespace}
        items += [
            {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": team}, "spec": spec},
            {"apiVersion": API, "kind": "LocalQueue", "metadata": metadata, "spec": {"clusterQueue": team}},
        ]
    try:
        release.apply({"apiVersion": "v1", "kind": "List", "items": items})
    except AssertionError as error:
        if "webhook" not in str(error):
            raise
        return False
    return True


def job_of(release: Release, study: str) -> Any:
    (job,) = until(lambda: release.objects("jobs", f"foldwise/study={study}"))
    return job


def finished(release: Release, study: str) -> None:
    until(lambda: release.state(study) == "complete")
    release.check(study, trials=release.study(study)["spec"]["trials"])


def test_a_study_waits_until_another_makes_room(queued: Release) -> None:
    queued.create("first", "--set", "workers=2", "--set", "workers_per_trial=2")
    queued.running("first", 2)
    until(lambda: len(queued.held("first")) == 2)
    queued.create("second", "--set", "workers=2", "--set", "trials=1")
    said = until(lambda: "Kueue: " in (said := queued.foldwise("study", "workers", "second")) and said)
    queued.note("what a study says that waits in the queue", said.strip().splitlines()[-1])
    assert job_of(queued, "second")["spec"]["suspend"]
    # Paused, it gives its place away, after the folds under way.
    queued.foldwise("study", "pause", "first")
    until(lambda: not queued.pods("first"))
    assert {lease["outcome"] for lease in queued.leases("first")} == {"done"}
    queued.running("second", 2)
    queued.foldwise("study", "resume", "first")
    finished(queued, "second")
    finished(queued, "first")


def test_a_study_starts_with_fewer_pods_where_the_quota_has_no_more(queued: Release) -> None:
    queued.create("wide", "--set", "workers=4", "--set", "workers_per_trial=4")
    queued.running("wide", 2)
    assert job_of(queued, "wide")["spec"]["parallelism"] == 2
    finished(queued, "wide")


def test_a_study_that_borrowed_is_preempted_and_goes_on_with_less(queued: Release) -> None:
    queued.create("borrows", "--set", "workers=2", "--set", "workers_per_trial=2", "--set", "trials=3")
    queued.running("borrows", 2)
    until(lambda: len(queued.held("borrows")) == 2)
    claim = {"name": "own", "image": queued.image("coordinator"), "command": ["sleep", "infinity"]}
    gpu = {"limits": {"nvidia.com/gpu": "1"}, "requests": {"cpu": "10m", "memory": "10Mi"}}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "containers": [{**claim, "resources": gpu}],
    }
    labels = {"kueue.x-k8s.io/queue-name": OTHERS}
    spec = {"suspend": True, "template": {"spec": pod}}
    others = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "others", "labels": labels}}
    queued.apply({**others, "spec": spec})
    queued.kubectl("wait", "job/others", "--for=jsonpath={.status.ready}=1", f"--timeout={PATIENCE:.0f}s")
    # What was taken from it is one pod of two, and the folds that both had are given back, not lost.
    queued.running("borrows", 1)
    assert "released" in {lease["outcome"] for lease in queued.leases("borrows")}
    queued.kubectl("delete", "job", "others")
    finished(queued, "borrows")
    (job,) = queued.objects("jobs", "foldwise/study=borrows")
    assert not job["status"].get("failed"), json.dumps(job["status"])
