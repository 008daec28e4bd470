"""`--context`, `--namespace` and the doctor's look at a cluster, against recorded answers of kubectl."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cli.cluster_access import KubeContext, chosen_context, reach_release
from cli.doctor.cluster import check_cluster, pod_findings
from cli.main import app
from coordinator.app import create_app
from services.errors import InvalidInput, NotFound, Unavailable
from tests.harness.coordinator_harness import Harness
from tests.harness.served_app import served

KUBECTL = """#!{python}
import json, pathlib, signal, sys
recorded = json.loads(pathlib.Path({folder!r}, "recorded.json").read_text())
arguments = sys.argv[1:]
with pathlib.Path({folder!r}, "asked").open("a") as asked:
    asked.write(" ".join(arguments) + chr(10))
if "port-forward" in arguments:
    if not recorded.get("port"):
        sys.exit("error: timed out waiting for the condition")
    print(f"Forwarding from 127.0.0.1:{{recorded['port']}} -> 8080", flush=True)
    signal.pause()
what = " ".join(word for word in arguments if word in ("version", "deployments", "secret", "service", "nodes",
    "storageclasses", "persistentvolumeclaims", "pods"))
if what not in recorded:
    sys.exit(f"Error from server (Forbidden): {{what}} is forbidden")
print(json.dumps(recorded[what]))
"""

RELEASE: dict[str, Any] = {
    "deployments": {
        "items": [
            {
                "metadata": {"name": "f-foldwise"},
                "spec": {
                    "template": {
                        "spec": {
                            "volumes": [
                                {"name": "database", "secret": {"secretName": "f-foldwise-database"}},
                                {"name": "auth", "secret": {"secretName": "f-foldwise-auth"}},
                            ]
                        }
                    }
                },
            }
        ]
    },
    "service": {"spec": {"ports": [{"name": "http", "port": 8080}]}},
}


class Recorded:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "kubectl"
        program.write_text(KUBECTL.format(python=sys.executable, folder=str(folder)))
        program.chmod(0o755)
        self.says({})

    def says(self, answers: dict[str, Any]) -> None:
        (self.folder / "recorded.json").write_text(json.dumps(answers))

    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().splitlines()


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    monkeypatch.setenv("PATH", str(tmp_path))
    yield Recorded(tmp_path)
    chosen_context.set(None)


@pytest.fixture
def coordinator(harness: Harness) -> Iterator[httpx.Client]:
    with served(create_app(harness.settings)) as client:
        yield client


def test_a_release_is_reached_with_its_own_token(
    kubectl: Recorded, coordinator: httpx.Client, harness: Harness
) -> None:
    harness.create()
    token = base64.b64encode(harness.settings.admin_token.encode()).decode()
    kubectl.says(RELEASE | {"secret": {"data": {"admin-token": token}}, "port": coordinator.base_url.port})
    listed = CliRunner().invoke(app, ["--context", "lab", "--namespace", "search", "study", "list", "--json"])
    assert listed.exit_code == 0, listed.output
    # The coordinator runs in this process and may log to the same stdout.
    assert [study["name"] for study in json.loads(listed.stdout.splitlines()[-1])] == ["s"]
    assert all(line.startswith("--context lab --namespace search ") for line in kubectl.asked())
    assert "get secret f-foldwise-auth" in kubectl.asked()[1]


@pytest.mark.parametrize(
    ("answers", "kind", "sentence"),
    [
        ({"deployments": {"items": []}}, NotFound, "namespace search should have one foldwise release"),
        (
            {"deployments": {"items": RELEASE["deployments"]["items"] * 2}},
            NotFound,
            "has: f-foldwise, f-foldwise",
        ),
        (
            RELEASE | {"secret": {"data": {}}},
            NotFound,
            "f-foldwise-auth in namespace search has no key admin-token",
        ),
        ({}, Unavailable, "kubectl: Error from server"),
        (
            RELEASE | {"secret": {"data": {"admin-token": "eA=="}}},
            Unavailable,
            "kubectl port-forward: error: timed out",
        ),
    ],
)
def test_what_hinders_is_said(
    answers: dict[str, Any], kind: type[Exception], sentence: str, kubectl: Recorded
) -> None:
    kubectl.says(answers)
    with pytest.raises(kind, match=sentence), reach_release(KubeContext(namespace="search")):
        pass


def test_without_kubectl_there_is_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(InvalidInput, match="install it, or give --url"),
        reach_release(KubeContext(namespace="x")),
    ):
        pass


HEALTHY = {
    "version": {"serverVersion": {"major": "1", "minor": "34+", "gitVersion": "v1.34.4"}},
    "nodes": {
        "items": [
            {"status": {"allocatable": {"cpu": "8", "nvidia.com/gpu": "2"}}},
            {"status": {"allocatable": {"cpu": "8", "nvidia.com/gpu": "0", "amd.com/gpu": "4"}}},
            {"status": {"allocatable": {"cpu": "8", "gpu.intel.com/i915": "1"}}},
        ]
    },
    "storageclasses": {
        "items": [
            {
                "metadata": {
                    "name": "standard",
                    "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
                }
            }
        ]
    },
    "persistentvolumeclaims": {
        "items": [
            {
                "metadata": {"name": "f-cache", "labels": {"app.kubernetes.io/component": "cache"}},
                "spec": {"accessModes": ["ReadWriteMany"]},
                "status": {"phase": "Bound"},
            },
            {
                "metadata": {"name": "f-database", "labels": {"app.kubernetes.io/component": "postgresql"}},
                "spec": {"accessModes": ["ReadWriteOnce"]},
                "status": {"phase": "Bound"},
            },
        ]
    },
    "pods": {
        "items": [
            {
                "metadata": {"name": "f-0"},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
            }
        ]
    },
}


def test_a_healthy_cluster(kubectl: Recorded) -> None:
    kubectl.says(HEALTHY)
    findings = list(check_cluster(KubeContext(namespace="search")))
    assert {finding.what: finding.found for finding in findings} == {
        "kubernetes": "v1.34.4",
        "gpu nodes": "3 nodes, 4 x amd.com/gpu, 1 x gpu.intel.com/i915, 2 x nvidia.com/gpu",
        "storage": "classes standard; default standard",
        "volume f-cache": "Bound, ReadWriteMany",
        "volume f-database": "Bound, ReadWriteOnce",
        "pod f-0": "Running",
    }
    assert all(finding.good and finding.fix is None for finding in findings)
    asked = kubectl.asked()
    assert all(line.startswith("--namespace search ") for line in asked)
    of_release = [line for line in asked if "--selector app.kubernetes.io/part-of=foldwise" in line]
    assert [line.split()[3] for line in of_release] == ["persistentvolumeclaims", "pods"]


def test_a_sick_cluster_is_told_what_to_do(kubectl: Recorded) -> None:
    sick: dict[str, Any] = json.loads(json.dumps(HEALTHY))
    sick["version"]["serverVersion"]["minor"] = "28"
    sick["nodes"]["items"] = []
    sick["storageclasses"]["items"] = []
    cache, database = sick["persistentvolumeclaims"]["items"]
    cache["spec"]["accessModes"] = ["ReadWriteOnce"]
    database["status"]["phase"] = "Pending"
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}}
    sick["pods"]["items"][0]["status"] = {"phase": "Pending", "containerStatuses": [{"state": waiting}]}
    kubectl.says(sick)
    found = {finding.what: finding for finding in check_cluster(KubeContext())}
    assert {what for what, finding in found.items() if not finding.good} == {
        "kubernetes",
        "volume f-database",
        "pod f-0",
    }
    for what, words in {
        "kubernetes": "use Kubernetes 1.29 or newer",
        "gpu nodes": "device plugin",
        "storage": "set cache.storageClass",
        "volume f-cache": "only one node can mount it",
        "volume f-database": "set a storage class",
        "pod f-0": "kubectl describe pod f-0",
    }.items():
        assert words in str(found[what].fix)
    assert found["pod f-0"].found == 'Pending: ImagePullBackOff: Back-off pulling image "x"'
    assert found["gpu nodes"].found == "0 nodes, no GPU"
    assert found["storage"].found == "classes none; default none"
    kubectl.says(sick | {"pods": {"items": []}})
    found = {finding.what: finding for finding in check_cluster(KubeContext())}
    assert (found["pods"].good, found["pods"].found) == (False, "the namespace has no foldwise pod")
    assert "install the chart" in str(found["pods"].fix)


RUNNING, READY = {"phase": "Running"}, {"type": "Ready", "status": "True"}
UNSCHEDULED = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "no GPU is free",
}


@pytest.mark.parametrize(
    ("status", "good", "found"),
    [
        (RUNNING | {"conditions": [READY]}, True, "Running"),
        (RUNNING | {"conditions": [READY | {"status": "False"}]}, False, "Running"),
        ({"phase": "Succeeded"}, True, "Succeeded"),
        ({"phase": "Pending", "conditions": [UNSCHEDULED]}, False, "Pending: Unschedulable: no GPU is free"),
        (
            RUNNING | {"containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}]},
            False,
            "Running: OOMKilled",
        ),
        (
            RUNNING
            | {
                "containerStatuses": [
                    {
                        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}},
                        "lastState": {"terminated": {"exitCode": 69, "message": "{}\nfoldwise: no GPU\n"}},
                    }
                ]
            },
            False,
            "Running: it restarts after exit code 69: no GPU",
        ),
        (
            RUNNING
            | {"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "5m"}}}]},
            False,
            "Running: CrashLoopBackOff: 5m",
        ),
        ({"phase": "Failed", "reason": "Evicted"}, False, "Failed: Evicted"),
    ],
)
def test_a_pod_that_neither_is_ready_nor_has_succeeded_is_a_problem(
    status: dict[str, Any], good: bool, found: str
) -> None:
    (finding,) = pod_findings([{"metadata": {"name": "f-0"}, "status": status}])
    assert (finding.good, finding.found) == (good, found)


def test_what_may_not_be_read_is_no_fault(kubectl: Recorded) -> None:
    kubectl.says({key: answer for key, answer in HEALTHY.items() if key != "nodes"})
    found = {finding.what: finding for finding in check_cluster(KubeContext())}
    assert found["nodes"].good
    assert "Forbidden" in found["nodes"].found
    assert {"storage", "volume f-cache", "pod f-0"} <= found.keys(), "the other checks go on"
    kubectl.says({})
    (only,) = check_cluster(KubeContext())
    assert (only.what, only.good) == ("kubernetes", False)
