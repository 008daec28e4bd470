"""Sections of values.yaml about programs that run in pods: coordinator, database, dashboard, Jobs, workers.

Not allowed here: defaults, which are in foldwise/values.yaml. The optional keys of a list item (`Dataset`,
`DatasetSource`) are the exception: values.yaml has no line for them, so their default is here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from helm.values_types import (
    Claim,
    Extras,
    Image,
    Labels,
    Mapping,
    Name,
    Objects,
    Placement,
    Resources,
    Seconds,
    Service,
    Size,
    Spread,
    Values,
)


class TokenReview(Values):
    enabled: bool
    """Workers authenticate with the token of their service account instead of the shared worker token. This
    creates a ClusterRole that allows the coordinator to create TokenReviews."""

    audience: Annotated[str, Field(min_length=1)]
    """Audience of the service account tokens."""


class Coordinator(Placement, Spread, Extras, Resources):
    image: Image
    """Image of the coordinator, the migration Job and the pod of `helm test`."""

    replicas: Annotated[int, Field(ge=1, le=2)]
    """Number of coordinators, 1 or 2. Two coordinators both answer requests; one of them leads, and the other
    takes over if it fails."""

    leaseSeconds: Annotated[int, Field(ge=10)]
    """Seconds a silent worker keeps its lease on a fold; then another worker can lease the fold."""

    requestsPerSecond: Annotated[float, Field(ge=0)]
    """Maximum requests per second per token and client address (0: unlimited)."""

    guessesPerMinute: Annotated[float, Field(ge=0)]
    """Maximum requests with an unknown token per minute and client address (0: unlimited)."""

    tokenReview: TokenReview
    """Authentication of workers by their Kubernetes service account."""

    service: Service
    """Service of the coordinator's REST API and study page."""

    terminationGracePeriodSeconds: Seconds
    """Seconds between SIGTERM and SIGKILL when a pod is stopped."""


class Migration(Resources):
    waitSeconds: Seconds
    """Seconds the migration Job waits for the database to answer. Coordinator and dashboard may take 120
    seconds more than this to start."""

    ttlSecondsAfterFinished: Seconds
    """Seconds until Kubernetes deletes a finished migration Job. With an external database, Helm deletes the
    Job as soon as it succeeds."""


class PostgresqlImage(Image):
    repository: Annotated[str, Field(min_length=1)]
    """Name of the official image, or of an image with the same environment variables and paths, without
    registry and tag."""

    tag: str
    """Tag of the image: PostgreSQL 18; must not be empty. Data of another major version need a dump and a
    restore."""


class PostgresqlAuth(Values):
    existingSecret: Name
    """Existing Secret with the keys `password`, `dashboard-password`, `uri` and `dashboard-uri`. Empty: the
    chart creates one, which `helm uninstall` keeps."""

    password: str
    """Password of the database role `foldwise`. Empty: generated at the first install and kept. A later change
    does not change the password of an existing role. Ignored if `postgresql.auth.existingSecret` is set."""

    dashboardPassword: str
    """Password of the role `foldwise_dashboard`, which can only read. Empty: generated at the first install and
    kept. A later change does not change the password of an existing role. Ignored if
    `postgresql.auth.existingSecret` is set."""


class PostgresqlPersistence(Claim):
    enabled: bool
    """Keep the data on a persistent volume. `false`: the data are lost with the pod."""


class Postgresql(Placement, Resources):
    enabled: bool
    """Run one PostgreSQL pod in this release, without replicas or backups, for evaluation. `false`: the release
    uses `externalDatabase`."""

    image: PostgresqlImage
    """Image of the bundled PostgreSQL."""

    auth: PostgresqlAuth
    """Passwords of the database roles."""

    persistence: PostgresqlPersistence
    """Volume of the database."""

    runAsUser: Annotated[int, Field(ge=1)]
    """Numeric id of the user and group that run PostgreSQL: 999 in the Debian image, 70 in the Alpine image."""


class ExternalDatabase(Values):
    existingSecret: Name
    """Existing Secret with the URL of a PostgreSQL, `postgresql://user:password@host/name`. Required if
    `postgresql.enabled` is false; must be empty otherwise."""

    key: Annotated[str, Field(min_length=1)]
    """Key of the database URL in the Secret."""

    dashboardKey: str
    """Key, in the same Secret, of a URL whose role can only read. The migration creates the role if it is
    missing. Empty: the dashboard uses the URL of `externalDatabase.key` in read-only transactions."""


class Dashboard(Placement, Resources):
    enabled: bool
    """Run Optuna's dashboard. People sign in with a foldwise token."""

    image: Image
    """Image of the dashboard."""

    service: Service
    """Service of the dashboard."""


class DatasetSource(Values):
    existingClaim: Annotated[Name, Field(min_length=1)]
    """Existing PersistentVolumeClaim that holds the dataset; the Job mounts it read-only."""

    subPath: str = ""
    """Folder of the dataset on the volume. Empty: the root of the volume."""


class Dataset(Values):
    """A dataset to turn into a clip cache."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$")]
    """Name of the item: part of the Job's name, unique in the list."""

    dataset: Annotated[str, Field(min_length=1)]
    """Layout of the dataset, as in `foldwise preprocess --dataset`: `ckplus`, `crema-d`, `oulu-casia`,
    `ravdess`, `video-folder`, or the layout of an installed reader."""

    source: DatasetSource
    """Volume that holds the dataset."""

    frames: Annotated[int, Field(ge=1)] = 10
    """Frames per window."""

    frameSampling: Literal["last", "uniform", "middle"] = "last"
    """Frames of a window: the video's last ones, spread evenly over it, or consecutive ones around its
    middle."""

    windows: Annotated[int, Field(ge=1)] = 1
    """Windows per video, each a training sample. More than 1 needs `frameSampling` `uniform` or `middle`."""

    frameSize: Annotated[int, Field(ge=16)] = 112
    """Width and height of a face crop, in pixels."""

    detector: str = "yunet"
    """Face detector: `yunet`, or `res10` (the paper's)."""


class Preprocessing(Placement, Resources):
    image: Image
    """Image of the preprocessing Jobs."""

    datasets: list[Dataset]
    """Datasets to turn into clip caches, one Job each. A changed setting starts another Job. Empty: none; fill
    the cache volume with `foldwise preprocess`."""

    processes: Annotated[int, Field(ge=1)]
    """Processes per Job; each makes one clip at a time."""

    backoffLimit: Annotated[int, Field(ge=0)]
    """Retries of failed pods before a Job fails. A retry continues where the last pod stopped; disruptions and
    exit code 75 do not count."""


class Kueue(Values):
    queueName: Name
    """LocalQueue in which a study's Job waits until Kueue admits it. Empty: Kueue is not used."""

    minParallelism: Annotated[int, Field(ge=0)]
    """Minimum number of pods with which Kueue may admit a Job (partial admission). 0: all pods or none."""


class Keda(Values):
    enabled: bool
    """KEDA scales the permanent workers with the number of open trials. Needs `worker.deployment.enabled`."""

    minReplicas: Annotated[int, Field(ge=0)]
    """Minimum number of permanent workers."""

    maxReplicas: Annotated[int, Field(ge=1)]
    """Maximum number of permanent workers."""

    cooldownSeconds: Seconds
    """Seconds without open trials before KEDA stops the last worker. Also the stabilization window of each
    scale-down (at most 3600)."""


class WorkerDeployment(Values):
    enabled: bool
    """Run permanent workers, which serve any study, in addition to `worker.jobs` or instead of it."""

    replicas: Annotated[int, Field(ge=0)]
    """Number of permanent workers. Ignored if KEDA is enabled."""

    keda: Keda
    """Scaling of the permanent workers by KEDA."""


class Worker(Placement, Spread, Extras):
    jobs: bool
    """The coordinator starts a Job of workers for each running study. `false`: enable `worker.deployment`, or
    start workers yourself."""

    image: Image
    """Image of the workers."""

    parallelism: Annotated[int, Field(ge=0, le=10000)]
    """Number of worker pods for a study that does not set `workers`."""

    resources: Mapping
    """Resource requests and limits of a worker. The limits name the GPU resource of your cluster, such as
    `nvidia.com/gpu`, `nvidia.com/mig-1g.10gb` or `nvidia.com/gpu.shared`. A pod with N GPUs runs N workers and
    needs N times the CPU and memory; it can use only one MIG slice. A pod with a GPU limit or a resource
    claim never trains on the CPU. `null` removes a default: `nvidia.com/gpu: null` trains on the CPU."""

    resourceClaims: Objects
    """Claims of the pod for dynamic resource allocation, as in a pod's `resourceClaims`. Name each of them in
    `worker.resources.claims` too. Empty: none."""

    runtimeClassName: str
    """RuntimeClass of the pods. Empty: the node's default runtime, which must support GPUs."""

    threads: Annotated[int, Field(ge=0)]
    """CPU threads of a worker for studies that it is the first to serve (0: 4, or the cores if there are
    fewer). A study keeps the number of its first lease."""

    compileCache: Mapping
    """Volume source, such as `hostPath` or `persistentVolumeClaim`, in which workers share compiled networks.
    The pods' user must be able to write to it. Empty: each pod compiles for itself."""

    shmSize: Size
    """Size of /dev/shm, such as `1Gi`. It counts towards the pod's memory limit."""

    backoffLimit: Annotated[int, Field(ge=0)]
    """Retries of failed pods before a study's Job fails. Disruptions and exit code 75 do not count. Exit code
    69 (no usable GPU, or unreadable caches on this node) counts only while no worker of the study can run."""

    ttlSecondsAfterFinished: Seconds
    """Seconds until Kubernetes deletes the finished Job of a study."""

    terminationGracePeriodSeconds: Seconds
    """Seconds between SIGTERM and SIGKILL. On SIGTERM a worker releases its fold, usually within a second."""

    hangSeconds: Annotated[int, Field(ge=60)]
    """Seconds without progress after which a worker's liveness probe fails, rounded up to full minutes.
    Kubernetes replaces the worker after three failed probes, one per minute."""

    podAnnotations: Labels
    """Extra annotations of the pods, such as `karpenter.sh/do-not-disrupt: "true"`."""

    kueue: Kueue
    """Queueing of studies' Jobs by Kueue."""

    deployment: WorkerDeployment
    """Workers that run all the time."""
