"""Worker pods that ended because their machine could not run a worker, such as one whose driver is too old.

Kubernetes replaces such a pod, after a pause that grows to minutes, and does not count it as a failure, because
one bad node must not end the workers on the others. Its scheduler may choose the same node again. So these
functions find out, from the pods that Kubernetes keeps, whether no machine can run a worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from k8s.cluster import Manifest
from services.errors import EXIT_UNAVAILABLE_HERE

CONTAINER = "worker"

RECENT = timedelta(minutes=15)
"""Time for which such an end explains why no worker runs; Kubernetes' longest pause is shorter."""


def worker_end(pod: Manifest) -> Manifest | None:
    """The state `terminated` of a pod's worker container; None while it runs or if it never started."""
    for container in pod.get("status", {}).get("containerStatuses") or ():
        if container.get("name") == CONTAINER:
            ended: Manifest | None = container.get("state", {}).get("terminated")
            return ended
    return None


def error_of(end: Manifest) -> str | None:
    """The error that a worker printed before its end, from the end of its log in the state `terminated`."""
    lines = str(end.get("message") or "").strip().splitlines()
    errors = [line.removeprefix("foldwise: ") for line in lines if line.startswith("foldwise: ")]
    told = errors or lines
    return told[-1] if told else None


def on_unusable_machines(pods: Iterable[Manifest], job: Manifest) -> list[Manifest]:
    """The Job's pods whose machine could not run a worker, in the order in which they ended."""
    uid = job["metadata"].get("uid")
    owned = [pod for pod in pods if uid in {o["uid"] for o in pod["metadata"].get("ownerReferences", ())}]
    ended = [pod for pod in owned if (worker_end(pod) or {}).get("exitCode") == EXIT_UNAVAILABLE_HERE]
    return sorted(ended, key=ended_at)


def ended_at(pod: Manifest) -> datetime:
    """When a pod's worker ended, as its node reports it."""
    finished = (worker_end(pod) or {}).get("finishedAt") or pod["metadata"].get("creationTimestamp")
    return datetime.fromisoformat(str(finished)) if finished else datetime.min.replace(tzinfo=UTC)


def is_recent(pod: Manifest, now: datetime) -> bool:
    """Whether a pod ended within the last `RECENT`."""
    return now - ended_at(pod) < RECENT


def each_node_once(pods: Sequence[Manifest]) -> list[Manifest]:
    """The last of these pods on each node."""
    return list({pod["spec"].get("nodeName"): pod for pod in pods}.values())


def reason(pods: Sequence[Manifest]) -> str:
    """Why the machines of these pods, at least one, cannot run a worker."""
    last = pods[-1]
    told = error_of(worker_end(last) or {}) or "it left no message; see its log"
    count = "" if len(pods) == 1 else f"{len(pods)} pods ended with "
    return (
        f"{count}exit code {EXIT_UNAVAILABLE_HERE}{'' if len(pods) == 1 else ', the last one'} on node "
        f"{last['spec'].get('nodeName') or 'unknown'}: {told}"
    )


def no_machine_is_left(
    unusable: Sequence[Manifest], living: Iterable[Manifest], job: Manifest, since: datetime | None
) -> bool:
    """Whether a Job should fail, because no worker has worked while its pods kept ending like this.

    Args:
        unusable: the Job's pods on unusable machines.
        living: its pods that have not ended.
        job: the Job; its `backoffLimit` is the maximum number of such ends.
        since: when a worker of the study last made progress, on any machine.
    """
    if any(pod["spec"].get("nodeName") for pod in living):
        return False
    counted = [pod for pod in unusable if since is None or ended_at(pod) > since]
    return len(counted) > int(job["spec"].get("backoffLimit", 6))
