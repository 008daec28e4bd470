"""What `foldwise doctor --namespace` looks at: versions, GPU nodes, storage, pods and their reasons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cli.cluster_access import Kubectl, Place
from cli.doctor.machine import Finding
from services.errors import Unavailable

OLDEST_KUBERNETES = (1, 29)

_RELEASE = "app.kubernetes.io/part-of=foldwise"
_OTHERS_CAN_MOUNT = {"ReadWriteMany", "ReadOnlyMany"}


def look_at_cluster(place: Place) -> Iterator[Finding]:
    """A cluster, and the release in its namespace.

    Raises:
        InvalidInput: kubectl is not installed.
    """
    kubectl = Kubectl(place)
    try:
        yield version_finding(kubectl.read("version"))
    except Unavailable as error:
        yield Finding(what="kubernetes", good=False, found=error.message, fix="correct --context")
        return
    for arguments, judge in (
        (("get", "nodes"), gpu_finding),
        (("get", "storageclasses"), storage_finding),
        (("get", "persistentvolumeclaims", "--selector", _RELEASE), claim_findings),
        (("get", "pods", "--selector", _RELEASE), pod_findings),
    ):
        try:
            yield from judge(kubectl.read(*arguments)["items"])
        except Unavailable as error:
            yield Finding(
                what=arguments[1],
                good=True,
                found=error.message,
                fix="ask an administrator to look, if something does not start",
            )


def version_finding(answer: dict[str, Any]) -> Finding:
    """Of `kubectl version`."""
    server = answer.get("serverVersion", {})
    # Some providers write `34+`.
    numbers = tuple(int(str(server.get(key, "0")).rstrip("+") or 0) for key in ("major", "minor"))
    return Finding(
        what="kubernetes",
        good=numbers >= OLDEST_KUBERNETES,
        found=str(server.get("gitVersion", "no server answered")),
        fix=None if numbers >= OLDEST_KUBERNETES else "use Kubernetes 1.29 or newer",
    )


def gpu_finding(nodes: list[dict[str, Any]]) -> Iterator[Finding]:
    """Of nodes: which of them have GPUs to give."""
    found: dict[str, int] = {}
    for node in nodes:
        for resource, amount in node["status"].get("allocatable", {}).items():
            if resource.startswith(("nvidia.com/", "amd.com/", "gpu.intel.com/")) and amount != "0":
                found[resource] = found.get(resource, 0) + int(amount)
    gpus = ", ".join(f"{amount} x {resource}" for resource, amount in sorted(found.items()))
    yield Finding(
        what="gpu nodes",
        good=True,
        found=f"{len(nodes)} nodes, {gpus or 'no GPU'}",
        fix=None
        if found
        else "install the GPU's device plugin, or take the GPU out of worker.resources.limits to train on CPUs",
    )


def storage_finding(classes: list[dict[str, Any]]) -> Iterator[Finding]:
    """Of storage classes: is one the default."""
    marks = "storageclass.kubernetes.io/is-default-class"
    names = [item["metadata"]["name"] for item in classes]
    default = [
        item["metadata"]["name"]
        for item in classes
        if item["metadata"].get("annotations", {}).get(marks) == "true"
    ]
    yield Finding(
        what="storage",
        good=True,
        found=f"classes {', '.join(names) or 'none'}; default {default[0] if default else 'none'}",
        fix=None if default else "name classes in cache.storageClass and postgresql.persistence.storageClass",
    )


def claim_findings(claims: list[dict[str, Any]]) -> Iterator[Finding]:
    """Of the release's volume claims: are they bound, can many nodes mount the cache."""
    for claim in claims:
        name, phase = claim["metadata"]["name"], claim["status"].get("phase")
        modes = claim["spec"].get("accessModes", [])
        shared = bool(_OTHERS_CAN_MOUNT & set(modes))
        cache = claim["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "cache"
        bound = phase == "Bound"
        fix = None if bound else "give it a storage class that can make such a volume; see its events"
        if bound and cache and not shared:
            fix = "one node alone can mount it: keep cache.singleNode, or use a class with ReadWriteMany"
        yield Finding(what=f"volume {name}", good=bound, found=f"{phase}, {', '.join(modes)}", fix=fix)


def pod_findings(pods: list[dict[str, Any]]) -> Iterator[Finding]:
    """Of the release's pods: which do not get on, and why."""
    if not pods:
        yield Finding(
            what="pods", good=False, found="no pod of foldwise here", fix="helm install, or look at --namespace"
        )
    for pod in pods:
        status = pod["status"]
        phase = status.get("phase")
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())
        reason = _reason(status)
        good = phase == "Succeeded" or (phase == "Running" and ready)
        yield Finding(
            what=f"pod {pod['metadata']['name']}",
            good=good,
            found=phase if good or not reason else f"{phase}: {reason}",
            fix=None if good else f"kubectl describe pod {pod['metadata']['name']}",
        )


def _reason(status: dict[str, Any]) -> str | None:
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason')}: {condition.get('message')}"
    for container in status.get("containerStatuses") or ():
        state = container.get("state", {})
        told = state.get("waiting") or state.get("terminated") or {}
        if told.get("reason"):
            return ": ".join(str(told[key]) for key in ("reason", "message") if told.get(key))
    reason: str | None = status.get("reason")
    return reason
