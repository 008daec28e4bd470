"""The cluster that `make test-cluster` runs on, and one release that most of its tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml

from helm.generate import CHART
from tests.cluster.control_plane import folder_of_programs
from tests.cluster.release import Release, run

FACES = CHART / "examples" / "objects" / "drawn-faces.yaml"


@pytest.fixture(scope="session")
def cluster() -> None:
    """A cluster, by KUBECONFIG, and kubectl to reach it."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("no KUBECONFIG; `make test-cluster` starts a cluster where there is none")
    if folder := folder_of_programs():
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    run("kubectl", "get", "nodes")


@pytest.fixture(scope="session")
def release(cluster: None) -> Iterator[Release]:
    """A namespace with a dataset on a volume, and nothing installed yet; it is deleted at the end."""
    with namespace(f"foldwise-{os.getpid()}") as made:
        made.declare_gpus(2)
        yield made


@pytest.fixture
def elsewhere(cluster: None) -> Iterator[Release]:
    """Another one."""
    with namespace(f"elsewhere-{os.getpid()}") as made:
        yield made


@contextmanager
def namespace(name: str) -> Iterator[Release]:
    made = Release(name)
    run("kubectl", "create", "namespace", name)
    try:
        put_faces(made)
        yield made
    finally:
        run("kubectl", "delete", "namespace", name, "--wait=false")


def put_faces(release: Release) -> None:
    """A CK+ tree of four people on the claim `faces`."""
    claim, job = yaml.safe_load_all(FACES.read_text())
    job["spec"]["template"]["spec"]["containers"][0]["args"][-1] = "4"
    for manifest in (claim, job):
        release.apply(manifest)
    release.kubectl("wait", "job/faces", "--for=condition=complete", "--timeout=300s")
