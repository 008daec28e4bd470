"""What `foldwise doctor --namespace` checks: version, GPU nodes, storage classes, volumes and pods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cli.cluster_access import KubeContext, Kubectl
from cli.doctor.machine import Finding
from k8s.unusable_machines import error_of
from services.errors import Unavailable

OLDEST_KUBERNETES = (1, 29)

_RELEASE = "app.kubernetes.io/part-of=foldwise"
_SHARED_MODES = {"ReadWriteMany", "ReadOnlyMany"}


def check_cluster(context: KubeContext) -> Iterator[Finding]:
    """Check a cluster, and the release in the namespace.

    Raises:
        InvalidInput: kubectl is not installed.
    """
    kubectl = Kubectl(context)
    try:
        yield version_finding(kubectl.read("version"))
    except Unavailable as error:
        yield Finding(what="kubernetes", good=False, found=error.message, fix="check --context")
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
                fix="if something does not start, ask an administrator to check this",
            )


def version_finding(answer: dict[str, Any]) -> Finding:
    """Check that the server which `kubectl version` reports is new enough."""
    server = answer.get("serverVersion", {})
    # Some providers write `34+`.
    numbers = tuple(int(str(server.get(key, "0")).rstrip("+") or 0) for key in ("major", "minor"))
    return Finding(
        what="kubernetes",
        good=numbers >= OLDEST_KUBERNETES,
        found=str(server.get("gitVersion", "no server has answered")),
        fix=None if numbers >= OLDEST_KUBERNETES else "use Kubernetes 1.29 or newer",
    )


def gpu_finding(nodes: list[dict[str, Any]]) -> Iterator[Finding]:
    """Count the GPUs that the nodes can allocate."""
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
        else "install the GPU's device plugin, or remove the GPU from worker.resources.limits to train on CPUs",
    )


def storage_finding(classes: list[dict[str, Any]]) -> Iterator[Finding]:
    """List the storage classes, and which one is the default."""
    mark = "storageclass.kubernetes.io/is-default-class"
    names = [item["metadata"]["name"] for item in classes]
    default = [
        item["metadata"]["name"]
        for item in classes
        if item["metadata"].get("annotations", {}).get(mark) == "true"
    ]
    yield Finding(
        what="storage",
        good=True,
        found=f"classes {', '.join(names) or 'none'}; default {default[0] if default else 'none'}",
        fix=None
        if default
        else "set cache.storageClass and postgresql.persistence.storageClass to one of the classes",
    )


def claim_findings(claims: list[dict[str, Any]]) -> Iterator[Finding]:
    """Check that the release's volume claims are bound, and that several nodes can mount the cache."""
    for claim in claims:
        name, phase = claim["metadata"]["name"], claim["status"].get("phase")
        modes = claim["spec"].get("accessModes", [])
        shared = bool(_SHARED_MODES & set(modes))
        cache = claim["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "cache"
        bound = phase == "Bound"
        fix = None if bound else "set a storage class that provides such a volume; see the events of the claim"
        if bound and cache and not shared:
            fix = "only one node can mount it: keep cache.singleNode, or use a storage class with ReadWriteMany"
        yield Finding(what=f"volume {name}", good=bound, found=f"{phase}, {', '.join(modes)}", fix=fix)


def pod_findings(pods: list[dict[str, Any]]) -> Iterator[Finding]:
    """Check that the release's pods run; for those that do not, give the reason."""
    if not pods:
        yield Finding(
            what="pods",
            good=False,
            found="the namespace has no foldwise pod",
            fix="install the chart with helm, or check --namespace",
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
        before = container.get("lastState", {}).get("terminated") or {}
        if state.get("waiting", {}).get("reason") == "CrashLoopBackOff" and error_of(before):
            return f"it restarts after exit code {before.get('exitCode')}: {error_of(before)}"
        halted = state.get("waiting") or state.get("terminated") or {}
        if halted.get("reason"):
            return ": ".join(str(halted[key]) for key in ("reason", "message") if halted.get(key))
    reason: str | None = status.get("reason")
    return reason
