"""The FastAPI application: its gate, routes and metrics, and the threads that run as long as it does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import QueuePool
from starlette.concurrency import run_in_threadpool
from starlette.staticfiles import StaticFiles

from coordinator.access.authentication import Callers
from coordinator.access.authorization import TokenMiddleware
from coordinator.access.connections import limited_protocol
from coordinator.access.large_bodies import LargeBodies
from coordinator.access.paths import STATIC
from coordinator.access.problems import add_handlers
from coordinator.leader import Leader
from coordinator.metrics import RequestMetrics, ServiceCollector, add_process_metrics
from coordinator.pages import actions, sign_in
from coordinator.pages import studies as study_pages
from coordinator.pages import trials as trial_pages
from coordinator.pages.headers import PageHeaders
from coordinator.pages.rendering import render_problem
from coordinator.routes import (
    body_limits,
    events,
    leases,
    studies,
    study_findings,
    study_life,
    study_workers,
    system,
    tokens,
)
from coordinator.runtime import Runtime, runtime_of
from coordinator.settings import CoordinatorSettings
from coordinator.store.engines import connect_all
from coordinator.study_workers import WorkerJobs
from k8s.cluster import Cluster
from k8s.token_review import TokenReviewer

MAX_CONNECTIONS = 10_000
"""Connections of a coordinator, most of which wait for a fold or an event; further ones get 503."""


def create_app(
    settings: CoordinatorSettings,
    *,
    ending: Callable[[], bool] = lambda: False,
    reviewer: TokenReviewer | None = None,
    cluster: Cluster | None = None,
) -> FastAPI:
    """The application for one database, whose schema is up to date; starting it starts the leader.

    Args:
        settings: of this process.
        ending: whether the server was told to end; a claim that waits is then answered at once.
        reviewer: checks tokens that are not ours; the service accounts that it accepts may do what workers may.
        cluster: runs a Job of workers for each running study, made from `settings.worker_template`.

    Raises:
        InvalidInput: when the application starts, if the database's URL is wrong.
    """
    registry = CollectorRegistry()
    add_process_metrics(registry)
    refused = Counter(
        "foldwise_connections_refused",
        "Connections that were closed because a request's head or body was too large or too slow.",
        ["reason"],
        registry=registry,
    )

    def _worker_jobs(sessions: sessionmaker[Session], leader: Leader) -> WorkerJobs | None:
        if cluster is None or settings.worker_template is None:
            return None
        return WorkerJobs(cluster, settings.worker_template, sessions, is_leader=lambda: leader.is_leader)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engines = connect_all(settings.database_url)
        sessions = sessionmaker(engines.requests, expire_on_commit=False)
        probes = sessionmaker(engines.probes)
        leader = Leader(engines.leader, engines.elections, settings)
        pool = engines.requests.pool
        assert isinstance(pool, QueuePool)  # noqa: S101 - SQLAlchemy's default for PostgreSQL
        jobs = _worker_jobs(sessions, leader)
        app.state.runtime = Runtime(
            settings=settings,
            sessions=sessions,
            probes=probes,
            callers=Callers(sessionmaker(engines.tokens), settings, reviewer),
            leader=leader,
            worker_jobs=jobs,
            metrics=registry,
            ending=ending,
        )
        service = ServiceCollector(
            sessionmaker(engines.metrics),
            leader,
            connections=pool.checkedout,
            stalled=None if jobs is None else jobs.stalled,
        )
        registry.register(service)
        leader.start()
        if jobs is not None:
            jobs.start()
        yield
        registry.unregister(service)
        if jobs is not None:
            await run_in_threadpool(jobs.stop)
        # Waits for the end of the leader's round, while requests are still answered.
        await run_in_threadpool(leader.stop)
        await run_in_threadpool(runtime_of(app).callers.close)
        engines.dispose()

    app = FastAPI(
        title="foldwise",
        version=version("foldwise"),
        lifespan=lifespan,
        max_body_size=body_limits.DEFAULT_BYTES,
        # Metrics go to Prometheus; looking for OpenTelemetry's providers costs a request a tenth of its time.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        # These pages load scripts from other hosts; the description itself needs a token like all else.
        docs_url=None,
        redoc_url=None,
    )
    app.state.on_refused = lambda reason: refused.labels(reason).inc()
    app.include_router(leases.router)
    app.include_router(studies.router)
    app.include_router(study_life.router)
    app.include_router(study_workers.router)
    app.include_router(study_findings.router)
    app.include_router(events.router)
    app.include_router(tokens.router)
    app.include_router(system.router)
    app.include_router(system.api_router)
    app.include_router(sign_in.router)
    app.include_router(study_pages.router)
    app.include_router(trial_pages.router)
    app.include_router(actions.router)
    app.mount(STATIC, StaticFiles(packages=[("coordinator.pages", "static")]))
    app.add_middleware(LargeBodies, streamed={study_life.IMPORT_PATH})
    app.add_middleware(TokenMiddleware, callers=lambda: runtime_of(app).callers)
    app.add_middleware(PageHeaders)
    app.add_middleware(RequestMetrics, registry=registry)
    add_handlers(app, render_problem)
    return app


def server_config(app: FastAPI, **options: Any) -> uvicorn.Config:
    """Configuration of a server for an application of `create_app`, with the limits of its connections."""
    quiet = {"log_level": "warning", "access_log": False}
    return uvicorn.Config(
        app,
        http=limited_protocol(app.state.on_refused),
        limit_concurrency=MAX_CONNECTIONS,
        **{**quiet, **options},
    )
