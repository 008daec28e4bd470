"""Metrics for Prometheus: requests as this process saw them, and everything else as the database has it.

Values from the database survive restarts and are the same from every replica. They can go down, when an expired
lease becomes live again or a study is deleted, so they are gauges and not counters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPMethod, HTTPStatus
from typing import Protocol, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.access.causes import log_cause
from coordinator.scheduling.leases import Outcome
from coordinator.store.counts import ServiceCounts, service_counts
from coordinator.store.leadership import leadership

WORKER_SECONDS = 300.0
"""Seconds without contact after which a worker is no longer counted."""

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0)
"""Upper bounds in seconds; a claim may wait for 20."""

_METHODS = frozenset(HTTPMethod)


class RequestMetrics:
    """ASGI middleware: counts requests and their time by the route's template, never by a path of a client."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        # Otherwise every counter has a second series with its time of creation.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._requests = Counter(
            "foldwise_http_requests",
            "Requests by route template, method and status; no route: rejected before one was found.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "foldwise_http_request_seconds",
            "Time to the end of the answer; a claim may wait for a fold.",
            ["method", "route"],
            buckets=BUCKETS,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Stays so if a handler raises an error that nothing catches: the server then answers 500.
        status = int(HTTPStatus.INTERNAL_SERVER_ERROR)

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, send_and_record)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._requests.labels(method, route, status).inc()
            self._seconds.labels(method, route).observe(time.perf_counter() - started)


class Leading(Protocol):
    """What a collector asks the leader of this process."""

    @property
    def is_leader(self) -> bool:
        """Whether it leads now."""

    @property
    def round_seconds(self) -> float:
        """Duration of its last round."""


class ServiceCollector(Collector):
    """Reads this process and the database for each scrape."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        leader: Leading,
        *,
        connections: Callable[[], int],
        stalled: Callable[[str], str | None] | None = None,
    ) -> None:
        """Read these sources.

        Args:
            sessions: of the database.
            leader: of this coordinator.
            connections: the number of database connections in use.
            stalled: why a study has no workers; None where this coordinator starts no workers.
        """
        self._sessions = sessions
        self._leader = leader
        self._connections = connections
        self._stalled = stalled

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        yield _gauge("foldwise_leader", "1 where this coordinator is the leader.", self._leader.is_leader)
        yield _gauge(
            "foldwise_leader_round_seconds",
            "Duration of the last round of duties that this coordinator did as the leader.",
            self._leader.round_seconds,
        )
        yield _gauge(
            "foldwise_database_connections_in_use",
            "Connections in use, of this process's pool for requests.",
            self._connections(),
        )
        try:
            with self._sessions() as session:
                leading = leadership(session)
        except SQLAlchemyError as error:
            log_cause(error)
            yield _gauge("foldwise_database_up", "1 when the database answered this request.", 0)
            return
        yield _gauge("foldwise_database_up", "1 when the database answered this request.", 1)
        yield _gauge(
            "foldwise_leader_round_age_seconds",
            "Seconds since a leader last finished a round of duties.",
            leading.round_age_seconds,
        )
        try:
            with self._sessions() as session:
                counts = service_counts(session, seen_within=WORKER_SECONDS)
        except SQLAlchemyError as error:
            # Counting takes long on a database that is busy, which is no reason to say that it is down.
            log_cause(error)
            return
        yield from _of_database(counts)
        if self._stalled is not None:
            yield _gauge(
                "foldwise_studies_stalled",
                "Running studies for which Kubernetes can run no worker.",
                sum(self._stalled(study) is not None for study in counts.running),
            )


def add_process_metrics(registry: CollectorRegistry) -> None:
    """Add memory, CPU time and open files of this process, under the names that Prometheus clients share."""
    ProcessCollector(registry=registry)


def _of_database(counts: ServiceCounts) -> Iterator[Metric]:
    yield _gauge_by(
        "foldwise_folds_counted",
        "Folds whose result counts: run under a lease, or reused from a trial with equal parameters.",
        ("origin",),
        {("run",): counts.folds_run, ("reused",): counts.folds_reused},
    )
    yield _gauge_by(
        "foldwise_leases_ended",
        "Leases by how they ended; lapsed: expired; environment and trial: failed, by the cause.",
        ("outcome",),
        {(outcome,): counts.leases_ended.get(outcome, 0) for outcome in get_args(Outcome)},
    )
    yield _gauge("foldwise_leases_live", "Folds that a worker holds now.", counts.leases_live)
    yield _gauge(
        "foldwise_lease_overdue_seconds",
        "Seconds that the longest expired lease has waited for the leader to end it.",
        counts.lease_overdue_seconds,
    )
    yield _gauge(
        "foldwise_studies_failing",
        "Studies for which a duty of the leader fails again and again; `foldwise study show` gives the reason.",
        counts.studies_failing,
    )
    yield _gauge_by(
        "foldwise_trials",
        "Trials by study and state, of the studies that are not over.",
        ("study", "state"),
        {(study, state.value): count for (study, state), count in counts.trials.items()},
    )
    yield _gauge(
        "foldwise_open_trials",
        "Ready and running trials of running studies: the number of workers that would find work.",
        counts.open_trials,
    )
    yield _gauge("foldwise_workers", "Workers that made contact in the last five minutes.", counts.workers)
    yield _gauge("foldwise_outbox_length", "Changes that are not projected to Optuna yet.", counts.outbox)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=float(value))


def _gauge_by(
    name: str, documentation: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], int]
) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family
