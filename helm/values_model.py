"""The chart's values as types: `ChartValues` and the sections that configure no pod of their own.

`helm.generate` makes values.schema.json from these types, so Helm rejects a value that they do not allow.

Not allowed here: defaults, which are in foldwise/values.yaml.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from helm.values_types import Labels, Mapping, Name, Objects, Port, Resources, SharedClaim, Values
from helm.values_workloads import (
    Coordinator,
    Dashboard,
    ExternalDatabase,
    Migration,
    Postgresql,
    Preprocessing,
    Worker,
)


class Global(Values):
    imageRegistry: str
    """Registry of every image that names no registry, such as a mirror in an air-gapped site. Empty: the
    container runtime's default."""

    imagePullSecrets: Objects
    """Secrets for pulling images, as `[{name: ...}]`. Empty: images are pulled without credentials."""


class Auth(Values):
    existingSecret: Name
    """Existing Secret with the keys `admin-token`, `worker-token` and `read-token`. Empty: the chart creates
    one, which `helm uninstall` keeps."""

    adminToken: str
    """Token that may do everything. Empty: generated at the first install and kept. Ignored if
    `auth.existingSecret` is set."""

    workerToken: str
    """Token that all workers share. Empty: generated at the first install and kept. Ignored if
    `auth.existingSecret` is set."""

    readToken: str
    """Token that can only read, for Prometheus, KEDA and `helm test`. Empty: generated at the first install and
    kept. Ignored if `auth.existingSecret` is set."""


class Cache(SharedClaim):
    singleNode: bool
    """Keep all pods that mount the volume on the coordinator's node, so that `ReadWriteOnce` is enough. Needs
    `coordinator.replicas` 1."""


class Artifacts(SharedClaim):
    enabled: bool
    """Mount a volume for the model catalogue, and for results that a worker could not hand in. `false`: the
    release keeps no models, and such results are lost with their pod."""


class Ingress(Values):
    enabled: bool
    """Create an Ingress for the coordinator, and for the dashboard if `ingress.dashboardHost` is set."""

    className: str
    """IngressClass of the Ingress. Empty: the cluster's default."""

    annotations: Labels
    """Annotations of the Ingress."""

    host: str
    """Host name of the coordinator. Required if the Ingress is enabled."""

    dashboardHost: str
    """Host name of the dashboard. Empty: the Ingress does not serve the dashboard."""

    tls: Objects
    """TLS settings, as in an Ingress's `tls`. Empty: no TLS."""


class HttpRoute(Values):
    enabled: bool
    """Create an HTTPRoute of the Gateway API for the coordinator, and one for the dashboard if
    `httpRoute.dashboardHostnames` is set."""

    annotations: Labels
    """Annotations of the HTTPRoutes."""

    parentRefs: Objects
    """Gateways that the HTTPRoutes attach to, as in an HTTPRoute's `parentRefs`. Required if they are
    enabled."""

    hostnames: list[str]
    """Host names of the coordinator. Empty: every host name that the Gateway accepts."""

    dashboardHostnames: list[str]
    """Host names of the dashboard. Empty: no HTTPRoute for the dashboard."""


class NetworkPolicy(Values):
    enabled: bool
    """Create NetworkPolicies that deny the release's pods all traffic except what they need."""

    allowFrom: Objects
    """Peers that may reach coordinator and dashboard, as in a NetworkPolicy's `from`; your ingress controller
    and Prometheus belong here. The default is every pod of the namespace. Empty: only pods of the release."""

    apiServerCIDRs: list[str]
    """Networks of the Kubernetes API server, which the coordinator calls, in CIDR notation. Empty: any
    address."""

    apiServerPorts: list[Port]
    """TCP ports of the Kubernetes API server."""

    databaseCIDRs: list[str]
    """Networks of the external database, in CIDR notation. Empty: any address."""

    databasePort: Port
    """TCP port of the external database."""


class PodDisruptionBudget(Values):
    enabled: bool
    """Keep one of two coordinators running while nodes are drained. No effect with one coordinator."""


class Selected(Values):
    """An object that a Prometheus finds by its labels."""

    labels: Labels
    """Extra labels of the object, by which your Prometheus selects it."""


class ServiceMonitor(Selected):
    enabled: bool
    """Create a ServiceMonitor, so that Prometheus scrapes the coordinator."""

    interval: Annotated[str, Field(pattern=r"^[0-9]+(ms|s|m|h)$")]
    """Time between two scrapes, such as `30s`."""


class PrometheusRule(Selected):
    enabled: bool
    """Create a PrometheusRule with alerts."""


class Monitoring(Values):
    serviceMonitor: ServiceMonitor
    """Scraping of the coordinator's metrics."""

    prometheusRule: PrometheusRule
    """Alerts about the release."""


class Tests(Resources):
    pass


class ChartValues(Values):
    """Values of the chart foldwise."""

    nameOverride: Name
    """Replaces the chart's name, `foldwise`, in names and labels of objects. Empty: no replacement."""

    fullnameOverride: Name
    """Replaces release name and chart name in names of objects. Empty: no replacement."""

    commonLabels: Labels
    """Extra labels of every object and pod."""

    # `global` is a keyword of Python.
    global_: Annotated[Global, Field(alias="global")]
    """Settings of all images."""

    auth: Auth
    """Tokens of the coordinator's API."""

    coordinator: Coordinator
    """The coordinator, which serves the REST API and the study page, grants leases and starts workers."""

    migration: Migration
    """The Job that migrates the database schema at install and upgrade. It uses the coordinator's image and
    node placement."""

    postgresql: Postgresql
    """The bundled PostgreSQL."""

    externalDatabase: ExternalDatabase
    """A PostgreSQL outside this release."""

    dashboard: Dashboard
    """Optuna's dashboard, read-only."""

    preprocessing: Preprocessing
    """Jobs that turn datasets into clip caches."""

    cache: Cache
    """Volume of the clip caches. Coordinator, workers and preprocessing Jobs mount it."""

    artifacts: Artifacts
    """Volume of the model catalogue. Coordinator and workers mount it."""

    worker: Worker
    """Workers, which train the cross-validation folds of trials."""

    ingress: Ingress
    """Access from outside the cluster through an Ingress."""

    httpRoute: HttpRoute
    """Access from outside the cluster through the Gateway API."""

    networkPolicy: NetworkPolicy
    """Network traffic of the release's pods."""

    podDisruptionBudget: PodDisruptionBudget
    """Availability of the coordinator while nodes are drained."""

    monitoring: Monitoring
    """Objects for the Prometheus Operator."""

    tests: Tests
    """The pod of `helm test`."""

    extraObjects: list[str | Mapping]
    """More objects to install, each a mapping or a string. Helm renders both as templates."""
