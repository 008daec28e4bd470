"""The chart's values as types: values.schema.json is made of these, so Helm refuses what is not among them.

May not live here: defaults, which stand in foldwise/values.yaml beside their descriptions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Mapping = dict[str, Any]
"""Passed to Kubernetes as it is."""

Objects = list[dict[str, Any]]
"""Passed to Kubernetes as they are."""

Labels = dict[str, str]
Seconds = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$")]
"""Of an object, or empty."""

Digest = Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")]
Size = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(Ei|Pi|Ti|Gi|Mi|Ki|E|P|T|G|M|k)?$")]
AccessMode = Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]


class Values(BaseModel):
    """Base of all: nothing unknown, and no text where a number belongs."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Image(Values):
    registry: str
    repository: Annotated[str, Field(min_length=1)]
    tag: str
    digest: Digest
    pullPolicy: Literal["Always", "IfNotPresent", "Never"]


class Placement(Values):
    """Where pods may run."""

    nodeSelector: Labels
    tolerations: Objects
    affinity: Mapping
    priorityClassName: str


class Extras(Values):
    """What a container may be given beside its own."""

    extraEnv: Objects
    extraEnvFrom: Objects
    extraVolumes: Objects
    extraVolumeMounts: Objects
    podLabels: Labels
    podAnnotations: Labels
    serviceAccountAnnotations: Labels


class Service(Values):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    port: Port
    annotations: Labels


class Global(Values):
    imageRegistry: str
    imagePullSecrets: Objects


class Auth(Values):
    existingSecret: Name
    adminToken: str
    workerToken: str
    readToken: str


class TokenReview(Values):
    enabled: bool
    audience: Annotated[str, Field(min_length=1)]


class Coordinator(Placement, Extras):
    image: Image
    replicas: Annotated[int, Field(ge=1, le=2)]
    leaseSeconds: Annotated[int, Field(ge=10)]
    requestsPerSecond: Annotated[float, Field(ge=0)]
    guessesPerMinute: Annotated[float, Field(ge=0)]
    tokenReview: TokenReview
    service: Service
    resources: Mapping
    terminationGracePeriodSeconds: Seconds
    topologySpreadConstraints: Objects


class Migration(Values):
    waitSeconds: Seconds
    resources: Mapping
    ttlSecondsAfterFinished: Seconds


class PostgresqlAuth(Values):
    existingSecret: Name
    password: str
    dashboardPassword: str


class PostgresqlPersistence(Values):
    enabled: bool
    existingClaim: Name
    storageClass: str
    size: Size


class Postgresql(Placement):
    enabled: bool
    image: Image
    auth: PostgresqlAuth
    persistence: PostgresqlPersistence
    resources: Mapping
    runAsUser: Annotated[int, Field(ge=1)]


class ExternalDatabase(Values):
    existingSecret: Name
    key: Annotated[str, Field(min_length=1)]
    dashboardKey: str


class Dashboard(Placement):
    enabled: bool
    image: Image
    service: Service
    resources: Mapping


class DatasetSource(Values):
    """The volume that a dataset lies on."""

    existingClaim: Annotated[Name, Field(min_length=1)]
    subPath: str = ""


class Dataset(Values):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$")]
    dataset: Annotated[str, Field(min_length=1, description="layout of the dataset, as in foldwise preprocess")]
    source: DatasetSource
    frames: Annotated[int, Field(ge=1)] = 10
    frameSize: Annotated[int, Field(ge=16)] = 112
    detector: str = "yunet"


class Preprocessing(Placement):
    image: Image
    datasets: list[Dataset]
    processes: Annotated[int, Field(ge=1)]
    resources: Mapping
    backoffLimit: Annotated[int, Field(ge=0)]


class Volume(Values):
    existingClaim: Name
    storageClass: str
    accessModes: Annotated[list[AccessMode], Field(min_length=1)]
    size: Size
    volumeName: Name


class Cache(Volume):
    singleNode: bool


class Artifacts(Volume):
    enabled: bool


class Kueue(Values):
    queueName: Name
    minParallelism: Annotated[int, Field(ge=0)]


class Keda(Values):
    enabled: bool
    minReplicas: Annotated[int, Field(ge=0)]
    maxReplicas: Annotated[int, Field(ge=1)]
    cooldownSeconds: Seconds


class WorkerDeployment(Values):
    enabled: bool
    replicas: Annotated[int, Field(ge=0)]
    keda: Keda


class Worker(Placement, Extras):
    jobs: bool
    image: Image
    parallelism: Annotated[int, Field(ge=0, le=10000)]
    resources: Mapping
    resourceClaims: Objects
    runtimeClassName: str
    threads: Annotated[int, Field(ge=0)]
    shmSize: Size
    backoffLimit: Annotated[int, Field(ge=0)]
    ttlSecondsAfterFinished: Seconds
    terminationGracePeriodSeconds: Seconds
    hangSeconds: Annotated[int, Field(ge=60)]
    topologySpreadConstraints: Objects
    kueue: Kueue
    deployment: WorkerDeployment


class Ingress(Values):
    enabled: bool
    className: str
    annotations: Labels
    host: str
    dashboardHost: str
    tls: Objects


class HttpRoute(Values):
    enabled: bool
    annotations: Labels
    parentRefs: Objects
    hostnames: list[str]
    dashboardHostnames: list[str]


class NetworkPolicy(Values):
    enabled: bool
    allowFrom: Objects
    apiServerCIDRs: list[str]
    apiServerPorts: list[Port]
    databaseCIDRs: list[str]
    databasePort: Port


class PodDisruptionBudget(Values):
    enabled: bool


class ServiceMonitor(Values):
    enabled: bool
    labels: Labels
    interval: Annotated[str, Field(pattern=r"^[0-9]+(ms|s|m|h)$")]


class PrometheusRule(Values):
    enabled: bool
    labels: Labels


class Monitoring(Values):
    serviceMonitor: ServiceMonitor
    prometheusRule: PrometheusRule


class Tests(Values):
    resources: Mapping


class ChartValues(Values):
    """Everything that can be set."""

    nameOverride: Name
    fullnameOverride: Name
    commonLabels: Labels
    # `global` is a word of Python.
    global_: Annotated[Global, Field(alias="global")]
    auth: Auth
    coordinator: Coordinator
    migration: Migration
    postgresql: Postgresql
    externalDatabase: ExternalDatabase
    dashboard: Dashboard
    preprocessing: Preprocessing
    cache: Cache
    artifacts: Artifacts
    worker: Worker
    ingress: Ingress
    httpRoute: HttpRoute
    networkPolicy: NetworkPolicy
    podDisruptionBudget: PodDisruptionBudget
    monitoring: Monitoring
    tests: Tests
    extraObjects: list[str | Mapping]
