"""Types that several parts of the chart's values share: text patterns, images, volumes, settings of pods.

Not allowed here: a section of values.yaml (`helm.values_workloads`, `helm.values_model`), defaults.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Mapping = dict[str, Any]
"""Passed to Kubernetes unchanged."""

Objects = list[dict[str, Any]]
"""Passed to Kubernetes unchanged."""

Labels = dict[str, str]
Seconds = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$")]
"""Name of a Kubernetes object, or empty."""

Digest = Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")]
Size = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(Ei|Pi|Ti|Gi|Mi|Ki|E|P|T|G|M|k)?$")]
AccessMode = Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]


class Values(BaseModel):
    """Base of all sections: rejects unknown keys, and text where a number belongs.

    The string below a field is the description of that value, for operators: `helm.generate` copies it to
    values.yaml, values.schema.json and the README.
    """

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Image(Values):
    registry: str
    """Registry of the image. Empty: `global.imageRegistry`."""

    repository: Annotated[str, Field(min_length=1)]
    """Name of the image, without registry and tag."""

    tag: str
    """Tag of the image. Empty: the chart's appVersion."""

    digest: Digest
    """Digest of the image (`sha256:...`), used instead of the tag. Empty: the tag is used."""

    pullPolicy: Literal["Always", "IfNotPresent", "Never"]
    """When a node pulls the image: `Always`, `IfNotPresent` or `Never`."""


class Placement(Values):
    """Nodes that pods may run on."""

    nodeSelector: Labels
    """Labels that a node must have to run the pods. Empty: any node."""

    tolerations: Objects
    """Taints that the pods tolerate, as in a pod's `tolerations`. Empty: none."""

    affinity: Mapping
    """Affinity of the pods, as in a pod's `affinity`. Empty: none."""

    priorityClassName: str
    """PriorityClass of the pods. Empty: the cluster's default."""


class Spread(Values):
    """Pods that can be spread over nodes and zones."""

    topologySpreadConstraints: Objects
    """Spread of the pods over nodes or zones, as in a pod's `topologySpreadConstraints`; each constraint needs
    its own `labelSelector`. Empty: the scheduler's default."""


class Resources(Values):
    """Pods that request CPU and memory."""

    resources: Mapping
    """CPU and memory requests and limits of the container, as in a container's `resources`."""


class Extras(Values):
    """Additions to the pods and the container of a component."""

    extraEnv: Objects
    """Extra environment variables of the container, as in a container's `env`."""

    extraEnvFrom: Objects
    """Extra sources of environment variables, as in a container's `envFrom`."""

    extraVolumes: Objects
    """Extra volumes of the pods, as in a pod's `volumes`."""

    extraVolumeMounts: Objects
    """Extra volume mounts of the container, as in a container's `volumeMounts`."""

    podLabels: Labels
    """Extra labels of the pods."""

    podAnnotations: Labels
    """Extra annotations of the pods."""

    serviceAccountAnnotations: Labels
    """Annotations of the pods' service account."""


class Service(Values):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    """Type of the Service: `ClusterIP`, `NodePort` or `LoadBalancer`."""

    port: Port
    """Port of the Service."""

    annotations: Labels
    """Annotations of the Service."""


class Claim(Values):
    """A PersistentVolumeClaim that the chart creates, or an existing one."""

    existingClaim: Name
    """Existing PersistentVolumeClaim to use. Empty: the chart creates one, which `helm uninstall` keeps."""

    storageClass: str
    """StorageClass of the claim that the chart creates. Empty: the cluster's default. `-`: none; the
    claim then binds only to an existing volume."""

    size: Size
    """Size of the claim that the chart creates, such as `20Gi`."""


class SharedClaim(Claim):
    """A claim that pods on several nodes may mount."""

    accessModes: Annotated[list[AccessMode], Field(min_length=1)]
    """Access modes of the claim that the chart creates. Pods on several nodes need `ReadWriteMany`; with
    `cache.singleNode`, `ReadWriteOnce` is enough."""

    volumeName: Name
    """PersistentVolume that the claim binds to. Empty: Kubernetes chooses or provisions one."""
