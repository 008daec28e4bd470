"""The Job of a study's workers: how it is made from the chart's template, and what its state means.

The Job works as a queue: it runs `parallelism` pods at once, has no number of completions, and the first worker
that exits with 0 means that the study is over. The chart's template gives image, resources and policies;
foldwise sets name, labels, owner, parallelism and the study that the workers serve.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from k8s import unusable_machines
from k8s.cluster import Manifest
from k8s.unusable_machines import CONTAINER, error_of, worker_end
from services.contracts import PodView
from services.errors import InvalidInput

STUDY_LABEL = "foldwise/study"
WORKERS_ANNOTATION = "foldwise/workers"
"""Number of workers requested last. Kueue may have lowered the parallelism, which foldwise does not undo."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

_MAX_NAME_LENGTH = 57
"""Characters of a Job's name: its pods' names are six characters longer and may have 63, as may labels."""

_CANNOT_START = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
}
"""Reasons of a waiting container that cannot start."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """The chart's template of a worker Job, and the object that owns all Jobs made from it."""

    manifest: Manifest
    owner: Manifest

    @classmethod
    def of(cls, config_map: Manifest) -> Template:
        """Read the template from a ConfigMap's `job.yaml`.

        Raises:
            InvalidInput: there is none, or it has no container named `worker`.
        """
        name = config_map["metadata"]["name"]
        try:
            manifest = yaml.safe_load(config_map["data"]["job.yaml"])
            containers = manifest["spec"]["template"]["spec"]["containers"]
            has_worker = any(container["name"] == CONTAINER for container in containers)
        except (KeyError, TypeError, yaml.YAMLError) as error:
            raise InvalidInput(f"--worker-template {name}: its job.yaml is no Job") from error
        if not has_worker:
            raise InvalidInput(f"--worker-template {name}: its Job has no container {CONTAINER!r}")
        owner = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": name,
            "uid": config_map["metadata"]["uid"],
        }
        return cls(manifest=manifest, owner=owner)

    @property
    def selector(self) -> str:
        """Label selector of all Jobs and pods of workers: the labels that both have in common."""
        of_pods = self.manifest["spec"]["template"]["metadata"]["labels"].items()
        common = sorted(of_pods & self.manifest.get("metadata", {}).get("labels", {}).items())
        return ",".join(f"{key}={value}" for key, value in common)

    @property
    def workers(self) -> int:
        """Number of workers of a study that does not set it."""
        return int(self.manifest["spec"].get("parallelism", 1))

    def job(self, *, study: str, study_id: int, workers: int) -> Manifest:
        """Make the Job of a study that runs `workers` pods at once."""
        job = copy.deepcopy(self.manifest)
        metadata = job.setdefault("metadata", {})
        metadata["name"] = job_name(self.owner["name"], study, study_id)
        metadata.setdefault("labels", {})[STUDY_LABEL] = study
        metadata.setdefault("annotations", {})[WORKERS_ANNOTATION] = str(workers)
        metadata["ownerReferences"] = [self.owner]
        job["spec"]["parallelism"] = workers
        # Kueue resumes it once it is admitted.
        job["spec"]["suspend"] = QUEUE_LABEL in metadata["labels"]
        pod = job["spec"]["template"]
        pod["metadata"]["labels"][STUDY_LABEL] = study
        for container in pod["spec"]["containers"]:
            if container["name"] == CONTAINER:
                container.setdefault("env", []).append({"name": "FOLDWISE_STUDY", "value": study})
        return job


def job_name(owner: str, study: str, study_id: int) -> str:
    """A readable name, unique for a study of a release; the id distinguishes names that were cut."""
    end = f"-{study_id}"
    start = f"{owner.removesuffix('-worker')[:24].rstrip('-.')}-{study}"
    return re.sub(r"[^a-z0-9-]", "-", start[: _MAX_NAME_LENGTH - len(end)]).rstrip("-") + end


def ended(job: Manifest) -> str | None:
    """`Complete` or `Failed` if the Job has ended, otherwise None."""
    ends = _conditions(job, {"Complete", "Failed"}, "True")
    return str(ends[0]["type"]) if ends else None


def queued(job: Manifest) -> bool:
    """Whether Kueue decides when the Job runs."""
    return QUEUE_LABEL in job["metadata"].get("labels", {})


def is_over(pod: Manifest) -> bool:
    """Whether the pod has ended: none of its containers will run again."""
    return pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}


def pod_view(pod: Manifest) -> PodView:
    """Summarize a pod for people."""
    status = pod.get("status", {})
    reason, message = _failure(pod) or _start_problem(pod) or (status.get("reason"), status.get("message"))
    gpus: dict[str, str] = {}
    for container in pod["spec"]["containers"]:
        for resource, amount in container.get("resources", {}).get("limits", {}).items():
            # Extended resources have a domain; those other than GPUs are shown as well.
            if "/" in resource:
                gpus[resource] = str(amount)
    return PodView(
        name=pod["metadata"]["name"],
        uid=pod["metadata"]["uid"],
        phase="Terminating" if pod["metadata"].get("deletionTimestamp") else status.get("phase", "Unknown"),
        node=pod["spec"].get("nodeName"),
        gpus=gpus,
        reason=reason,
        message=message,
    )


def why_stalled(
    job: Manifest,
    pods: Sequence[Manifest],
    events: Sequence[Manifest],
    workload: Manifest | None,
    unusable: Sequence[Manifest] = (),
) -> str | None:
    """Reason reported by Kubernetes or Kueue why no worker of a running study runs; None if there is none.

    Args:
        job: the study's Job.
        pods: pods of the Job that have not ended.
        events: events of the Job.
        workload: Kueue's workload of the Job, if it waits in a queue.
        unusable: pods of the Job whose machine could not run a worker, in the order in which they ended.
    """
    if any(pod.get("status", {}).get("phase") == "Running" for pod in pods):
        return None
    reasons = [
        *(_why_failed(condition, unusable) for condition in _conditions(job, {"Failed"}, "True")),
        *(": ".join(part for part in problem if part) for pod in pods if (problem := _start_problem(pod))),
    ]
    if unusable:
        reasons.append(unusable_machines.reason(unusable))
    if job["spec"].get("suspend") and workload is not None:
        waits = _conditions(workload, {"QuotaReserved", "Admitted"}, "False")
        reasons += [f"Kueue: {_reason_text(condition)}" for condition in waits]
    if not pods:
        warnings = [event for event in events if event.get("type") == "Warning"]
        reasons += [_reason_text(event) for event in sorted(warnings, key=_time_of, reverse=True)]
    return reasons[0] if reasons else None


def _conditions(item: Manifest, types: set[str], status: str) -> list[Manifest]:
    conditions = item.get("status", {}).get("conditions") or ()
    return [c for c in conditions if c["type"] in types and c["status"] == status]


def _why_failed(condition: Manifest, unusable: Sequence[Manifest]) -> str:
    # foldwise lets the Job's deadline pass when no machine is left.
    if condition.get("reason") == "DeadlineExceeded" and unusable:
        return f"the Job has failed: {unusable_machines.reason(unusable)}"
    return f"the Job has failed: {_reason_text(condition)}"


def _failure(pod: Manifest) -> tuple[str, str | None] | None:
    """Exit code and error of a pod whose worker has failed; None if it has not, or if Kubernetes ended it."""
    end = worker_end(pod)
    if end is None or not end.get("exitCode") or pod["status"].get("reason"):
        return None
    return f"exit code {end['exitCode']}", error_of(end)


def _reason_text(source: Manifest) -> str:
    return f"{source.get('reason')}: {source.get('message')}"


def _start_problem(pod: Manifest) -> tuple[str, str | None] | None:
    """Reason and message why a pod does not start; None if none is reported."""
    for condition in _conditions(pod, {"PodScheduled"}, "False"):
        return str(condition.get("reason")), condition.get("message")
    for container in pod.get("status", {}).get("containerStatuses") or ():
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in _CANNOT_START:
            return str(waiting["reason"]), waiting.get("message")
    return None


def _time_of(event: Manifest) -> str:
    return str(
        event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
    )
