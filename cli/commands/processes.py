"""`foldwise up, coordinator, worker, migrate, dashboard`: the processes of the service."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cli.interruption import Interrupted
from cli.options import Catalogue, Database, Device, Devices, State, console, state_folder
from services.errors import InvalidInput

app = typer.Typer()

LOOPBACK = "127.0.0.1"


@app.command(epilog="Example: foldwise up --devices 0,2, then: foldwise study create --preset ckplus-loso")
def up(
    state: State = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, max=64, help="Number of workers (default: one per GPU, or one per four cores)."),
    ] = None,
    devices: Devices = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the coordinator on 127.0.0.1 (0: any free one).")
    ] = 8080,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="CPU threads of each worker for new studies (default: 4, or the cores if there are fewer).",
        ),
    ] = None,
) -> None:
    """Run PostgreSQL, a coordinator and workers on this machine until Ctrl-C."""
    from cli.local.devices import devices_of_workers
    from cli.local.service import local_service
    from services.compute_plans import default_threads, default_workers
    from services.usable_cores import usable_cores

    def print_line(text: str) -> None:
        console(False).print(text, highlight=False, soft_wrap=True)

    folder = state_folder(state)
    cores = usable_cores()
    chosen = devices_of_workers(devices, workers, notify=print_line, workers_on_cpu=default_workers(cores))
    on_cpu, each = chosen.count("cpu"), threads or default_threads(cores)
    if on_cpu * each > cores:
        print_line(
            f"{on_cpu} workers with {each} threads each share {cores} cores; fewer workers or a smaller "
            "--threads train faster"
        )
    with local_service(folder, devices=chosen, port=port, notify=print_line, threads=threads) as service:
        for name, device in service.devices.items():
            print_line(f"{name} on {device}")
        print_line(f"{len(chosen)} workers; logs in {folder.logs}; caches in {folder.caches}")
        option = "" if state is None else f" --state {folder.folder}"
        print_line(f"study page: {service.service.url}/")
        print_line(f"token to sign in there: foldwise token create me --scope write{option}")
        print_line(f"create a study with: foldwise study create --preset ckplus-loso{option}")
        print_line("Ctrl-C stops everything; run `foldwise up` again to continue")
        while True:
            service.tend()
            time.sleep(1.0)


@app.command(
    epilog="Example: FOLDWISE_ADMIN_TOKEN_FILE=admin FOLDWISE_WORKER_TOKEN_FILE=worker "
    "foldwise coordinator --database-url postgresql://me@db/foldwise --cache-root /cache"
)
def coordinator(
    cache_root: Annotated[Path, typer.Option(envvar="FOLDWISE_CACHE_ROOT", help="Folder of the clip caches.")],
    database_url: Database = None,
    models: Catalogue = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on (0: any free one).")] = 8080,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    lease_seconds: Annotated[
        float, typer.Option(min=1.0, help="Seconds that a silent worker keeps its lease.")
    ] = 90.0,
    requests_per_second: Annotated[
        float,
        typer.Option(
            min=0,
            envvar="FOLDWISE_REQUESTS_PER_SECOND",
            help="Maximum requests per second per token and address (0: unlimited).",
        ),
    ] = 500.0,
    guesses_per_minute: Annotated[
        float,
        typer.Option(
            min=0,
            envvar="FOLDWISE_GUESSES_PER_MINUTE",
            help="Maximum requests with an unknown token per minute and address (0: unlimited).",
        ),
    ] = 60.0,
    token_review_audience: Annotated[
        str | None,
        typer.Option(
            envvar="FOLDWISE_TOKEN_REVIEW_AUDIENCE",
            help="Accept workers' service account tokens that Kubernetes issued for this audience.",
        ),
    ] = None,
    token_review_account: Annotated[
        list[str] | None,
        typer.Option(
            envvar="FOLDWISE_TOKEN_REVIEW_ACCOUNTS",
            help="Service account to accept, as NAMESPACE/NAME; repeatable.",
        ),
    ] = None,
    worker_template: Annotated[
        str | None,
        typer.Option(
            envvar="FOLDWISE_WORKER_TEMPLATE",
            help="ConfigMap with the worker Job that each running study gets; only inside a cluster.",
        ),
    ] = None,
    dashboard_url: Annotated[
        str | None,
        typer.Option(
            envvar="FOLDWISE_DASHBOARD_URL", help="URL of Optuna's dashboard; the study page links to it."
        ),
    ] = None,
    migrates: Annotated[
        bool,
        typer.Option(
            "--migrate/--no-migrate",
            help="Migrate the database at the start, or wait until `foldwise migrate` has done it.",
        ),
    ] = True,
) -> None:
    """Run the coordinator on a PostgreSQL database."""
    import socket

    from cli.local.ports import bind
    from cli.local.serve import serve_coordinator
    from coordinator.settings import CoordinatorSettings
    from k8s.cluster import Cluster
    from k8s.token_review import TokenReviewer
    from services.logs import configure_logs
    from services.secrets import is_given, read_database_url, read_secret

    configure_logs()
    if dashboard_url is not None and not dashboard_url.startswith(("http://", "https://")):
        raise InvalidInput(
            f"--dashboard-url is {dashboard_url}; give a URL that begins with https:// or http://",
            field="dashboard_url",
        )

    def optional_secret(variable: str, what: str) -> str | None:
        return read_secret(variable, what=what) if is_given(variable) else None

    settings = CoordinatorSettings(
        database_url=read_database_url(database_url),
        cache_root=cache_root.absolute(),
        models_root=models.absolute() if models else None,
        admin_token=read_secret("FOLDWISE_ADMIN_TOKEN", what="the admin token"),
        worker_token=optional_secret("FOLDWISE_WORKER_TOKEN", "the workers' token"),
        read_token=optional_secret("FOLDWISE_READ_TOKEN", "the token for reading"),
        worker_template=worker_template,
        dashboard_url=dashboard_url,
        lease_seconds=lease_seconds,
        heartbeat_seconds=lease_seconds / 3,
        requests_per_second=requests_per_second,
        guesses_per_minute=guesses_per_minute,
    )
    reviewer = (
        TokenReviewer.in_cluster(token_review_audience, token_review_account or [])
        if token_review_audience
        else None
    )
    listener = bind(host, port) if fd is None else socket.socket(fileno=fd)
    # On SIGTERM the server finishes its requests and then raises the signal again: a good end.
    with contextlib.suppress(Interrupted), listener:
        cluster = Cluster.in_cluster() if worker_template else None
        serve_coordinator(settings, listener, reviewer, cluster=cluster, migrates=migrates)


@app.command(
    epilog="Example: FOLDWISE_TOKEN_FILE=token foldwise worker --url http://host:8080 --cache-root /cache"
)
def worker(
    url: Annotated[str, typer.Option(envvar="FOLDWISE_URL", help="URL of the coordinator.")],
    cache_root: Annotated[Path, typer.Option(envvar="FOLDWISE_CACHE_ROOT", help="Folder of the clip caches.")],
    models: Catalogue = None,
    study: Annotated[
        str | None,
        typer.Option(envvar="FOLDWISE_STUDY", help="Work for this study only and exit when it is over."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            envvar="FOLDWISE_WORKER_NAME", help="Name in logs and lists (default: host name and process id)."
        ),
    ] = None,
    device: Device = None,
    require_gpu: Annotated[
        bool,
        typer.Option(
            "--require-gpu",
            envvar="FOLDWISE_REQUIRE_GPU",
            help="Exit with code 69 if torch can use no GPU, instead of training on the CPU.",
        ),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="CPU threads for studies that this worker is the first to serve (default: 4, or the cores if "
            "there are fewer). A study keeps the number of its first lease.",
        ),
    ] = None,
    alive_file: Annotated[
        Path | None,
        typer.Option(
            envvar="FOLDWISE_ALIVE_FILE",
            help="File touched while the worker trains or waits for a fold, for a liveness probe.",
        ),
    ] = None,
) -> None:
    """Run a worker: it leases folds from a coordinator, trains them and reports the results.

    Without --device it runs a worker process for each GPU.
    """
    from cli.local.gpu_workers import run_one_per_gpu
    from services.logs import configure_logs
    from services.secrets import read_secret
    from worker.loop import Worker
    from worker.settings import WorkerSettings
    from worker.training.gpus import visible_gpus

    configure_logs()
    # Read again for every request: Kubernetes replaces the tokens of service accounts.
    token = partial(read_secret, "FOLDWISE_TOKEN", what="the worker's token")
    token()
    settings = WorkerSettings(
        url=url,
        token=token,
        cache_root=cache_root.absolute(),
        models_root=models.absolute() if models else None,
        alive_file=alive_file,
        study=study,
        device=device,
        require_gpu=require_gpu,
        threads=threads,
    )
    if name is not None:
        settings = replace(settings, name=name)
    gpus = visible_gpus() if device is None else 1
    if gpus > 1:
        code = run_one_per_gpu(sys.argv[1:], gpus=gpus, name=settings.name, alive_file=alive_file)
    else:
        code = Worker(settings).run()
    sys.stdout.flush()
    # Nothing is left to give back, and unloading PyTorch takes longer than a pod may take to stop.
    os._exit(code)


@app.command(epilog="Example: FOLDWISE_DATABASE_URL_FILE=url foldwise migrate --wait-seconds 300")
def migrate(
    database_url: Database = None,
    wait_seconds: Annotated[float, typer.Option(min=0, help="Seconds to wait for the database.")] = 0.0,
) -> None:
    """Migrate a database: foldwise's schema, Optuna's tables, and the dashboard's right to read them.

    FOLDWISE_DASHBOARD_DATABASE_URL (or the file FOLDWISE_DASHBOARD_DATABASE_URL_FILE) names the dashboard's
    role.
    """
    from cli.local.migrate import bring_up_to_date
    from services.secrets import is_given, read_database_url

    reader = "FOLDWISE_DASHBOARD_DATABASE_URL"
    bring_up_to_date(
        read_database_url(database_url),
        reader_url=read_database_url(None, reader) if is_given(reader) else None,
        wait_seconds=wait_seconds,
    )
    print("the database is up to date")


@app.command(epilog="Example: foldwise dashboard --port 8081")
def dashboard(
    state: State = None,
    database_url: Database = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other than 127.0.0.1 needs --url.")
    ] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on (0: any free one).")] = 8081,
    url: Annotated[
        str | None,
        typer.Option(envvar="FOLDWISE_URL", help="URL of the coordinator whose tokens serve as passwords."),
    ] = None,
) -> None:
    """Serve Optuna's dashboard: without a login on 127.0.0.1, elsewhere behind a coordinator's tokens."""
    from cli.local.dashboard import serve_behind_tokens, serve_on_loopback
    from services.secrets import is_given, read_database_url

    given = database_url is not None or is_given("FOLDWISE_DATABASE_URL")
    database = read_database_url(database_url) if given else None
    if host == LOOPBACK:
        serve_on_loopback(state_folder(state), database, port)
    else:
        serve_behind_tokens(database, url, host, port)
