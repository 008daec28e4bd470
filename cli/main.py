"""`foldwise`: the commands. A command imports what it needs when it runs: each image carries only its own."""

from __future__ import annotations

import contextlib
import json as json_library
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli import (
    cache_commands,
    model_commands,
    plan_command,
    result_commands,
    study_life,
    token_commands,
    worker_commands,
)
from cli.cluster_access import Place, chosen
from cli.state import StateFolder, default_state
from services.errors import EXIT_FAILURE, EXIT_TRY_AGAIN, FoldwiseError, InvalidInput
from services.revision import running_revision

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(study_life.app, name="study")
app.add_typer(token_commands.app, name="token")
app.add_typer(worker_commands.app, name="workers")


def _show_version(wanted: bool) -> None:
    if wanted:
        revision = running_revision()
        print(f"foldwise {metadata.version('foldwise')}{f', revision {revision}' if revision else ''}")
        raise typer.Exit


@app.callback()
def choose(
    context: Annotated[
        str | None,
        typer.Option(
            envvar="FOLDWISE_CONTEXT", help="Reach the release in this cluster, by kubectl's context."
        ),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", envvar="FOLDWISE_NAMESPACE", help="And in this namespace."),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say which foldwise this is."),
    ] = False,
) -> None:
    """Hyper-parameter search for 3D-CNN facial emotion recognition, fold by fold."""
    if context is not None or namespace is not None:
        chosen.set(Place(context=context, namespace=namespace))


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not KeyboardInterrupt, which typer turns into an exit code of its own."""


LOOPBACK = "127.0.0.1"

State = Annotated[Path | None, typer.Option(help="State folder; the default is in the user's data folder.")]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON line for programs.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda:0, ...; default: a GPU if there is one.")]
Database = Annotated[
    str | None,
    typer.Option(help="URL of PostgreSQL; or FOLDWISE_DATABASE_URL, or the file FOLDWISE_DATABASE_URL_FILE."),
]
Models = Annotated[Path | None, typer.Option(envvar="FOLDWISE_MODELS", help="Folder of the model catalogue.")]


@app.command(epilog="Example: foldwise demo --workers 2")
def demo(
    state: State = None,
    workers: Annotated[int, typer.Option(min=1, max=64)] = 2,
    new: Annotated[
        bool, typer.Option("--new", help="Start another study; do not go on with the last.")
    ] = False,
    json: Json = False,
) -> None:
    """Run the main job on this machine with synthetic faces: about five minutes on two cores."""
    from cli.demo import demo_state, run_demo

    result = run_demo(StateFolder(state or demo_state()), workers=workers, new=new, console=_console(json))
    if json:
        print(json_library.dumps(asdict(result)))


@app.command(epilog="Example: foldwise synth faces --subjects 12 --difficulty 0.5 --layout oulu-casia")
def synth(
    folder: Annotated[Path, typer.Argument(help="Folder to write the tree to.")],
    layout: Annotated[str, typer.Option(help="ckplus or oulu-casia.")] = "ckplus",
    subjects: Annotated[int, typer.Option(help="How many people.")] = 12,
    classes: Annotated[
        str | None, typer.Option(help="Some of the layout's emotions, such as anger,happy,fear; default: all.")
    ] = None,
    clips_per_class: Annotated[
        int, typer.Option(help="Sequences of each emotion per person; oulu-casia has room for one.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="The same seed draws the same faces.")] = 0,
    difficulty: Annotated[float, typer.Option(help="0 is easy, 1 is hard.")] = 0.5,
    fade: Annotated[
        float,
        typer.Option(help="How far expressions are gone again by the last frame: 0 at their peak, 1 gone."),
    ] = 0.0,
    colour: Annotated[
        bool | None, typer.Option("--colour/--gray", help="Default: gray for ckplus, colour for oulu-casia.")
    ] = None,
) -> None:
    """Write synthetic moving faces in the layout of a dataset."""
    from cli.progress import writing_progress
    from preprocessing.datasets.synthetic import write_synthetic_tree

    with writing_progress(_console(False)) as progress:
        write_synthetic_tree(
            folder,
            layout=layout,
            subjects=subjects,
            classes=None if classes is None else [name.strip() for name in classes.split(",")],
            clips_per_class=clips_per_class,
            seed=seed,
            difficulty=difficulty,
            fade=fade,
            colour=colour,
            progress=progress,
        )
    print(f"{folder} is a set in the layout {layout} now; next:")
    print(f"foldwise preprocess --dataset {layout} --root {folder}")


app.command(epilog="Example: foldwise preprocess --dataset ckplus --root /data/CK+")(cache_commands.preprocess)
app.command(epilog="Example: foldwise inspect ckplus --sheet sheet.png")(cache_commands.inspect)
app.command(epilog="Example: foldwise verify ckplus")(cache_commands.verify)


@app.command(
    epilog="Example: FOLDWISE_ADMIN_TOKEN_FILE=admin FOLDWISE_WORKER_TOKEN_FILE=worker "
    "foldwise coordinator --database-url postgresql://me@db/foldwise --cache-root /cache"
)
def coordinator(
    cache_root: Annotated[Path, typer.Option(envvar="FOLDWISE_CACHE_ROOT", help="Folder of the clip caches.")],
    database_url: Database = None,
    models: Models = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    lease_seconds: Annotated[
        float, typer.Option(min=1.0, help="A silent worker keeps its fold so long.")
    ] = 90.0,
    requests_per_second: Annotated[
        float,
        typer.Option(min=0, envvar="FOLDWISE_REQUESTS_PER_SECOND", help="Of one token and address; 0: any."),
    ] = 500.0,
    guesses_per_minute: Annotated[
        float,
        typer.Option(
            min=0, envvar="FOLDWISE_GUESSES_PER_MINUTE", help="Unknown tokens from one address; 0: any."
        ),
    ] = 60.0,
    token_review_audience: Annotated[
        str | None,
        typer.Option(
            envvar="FOLDWISE_TOKEN_REVIEW_AUDIENCE",
            help="Let workers in with service account tokens that Kubernetes made for this audience.",
        ),
    ] = None,
    token_review_account: Annotated[
        list[str] | None,
        typer.Option(
            envvar="FOLDWISE_TOKEN_REVIEW_ACCOUNTS", help="NAMESPACE/NAME of a service account that may."
        ),
    ] = None,
    worker_template: Annotated[
        str | None,
        typer.Option(
            envvar="FOLDWISE_WORKER_TEMPLATE",
            help="ConfigMap of the chart with the Job that each running study gets; works inside a cluster.",
        ),
    ] = None,
    dashboard_url: Annotated[
        str | None,
        typer.Option(
            envvar="FOLDWISE_DASHBOARD_URL", help="Where people reach Optuna's dashboard; the page links to it."
        ),
    ] = None,
    migrates: Annotated[
        bool, typer.Option("--migrate/--no-migrate", help="Or wait until `foldwise migrate` has done it.")
    ] = True,
) -> None:
    """Run the coordinator on a PostgreSQL."""
    import socket

    from cli.ports import bind
    from cli.secret import is_given, read_database_url, read_secret
    from cli.serve import serve_coordinator
    from coordinator.settings import CoordinatorSettings
    from k8s.cluster import Cluster
    from k8s.token_review import TokenReviewer
    from services.logs import configure_logs

    configure_logs()
    if dashboard_url is not None and not dashboard_url.startswith(("http://", "https://")):
        raise InvalidInput(
            f"--dashboard-url {dashboard_url} is no address; give one that begins with https:// or http://",
            field="dashboard_url",
        )
    settings = CoordinatorSettings(
        database_url=read_database_url(database_url),
        cache_root=cache_root.absolute(),
        models_root=models.absolute() if models else None,
        admin_token=read_secret("FOLDWISE_ADMIN_TOKEN", what="the admin token"),
        worker_token=(
            read_secret("FOLDWISE_WORKER_TOKEN", what="the workers' token")
            if is_given("FOLDWISE_WORKER_TOKEN")
            else None
        ),
        read_token=(
            read_secret("FOLDWISE_READ_TOKEN", what="the token for reading")
            if is_given("FOLDWISE_READ_TOKEN")
            else None
        ),
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
    # The server ends its requests on SIGTERM and then passes the signal on: that is a good end.
    with contextlib.suppress(Interrupted):
        cluster = Cluster.in_cluster() if worker_template else None
        serve_coordinator(settings, listener, reviewer, cluster=cluster, migrates=migrates)


@app.command(
    epilog="Example: FOLDWISE_TOKEN_FILE=token foldwise worker --url http://host:8080 --cache-root /cache"
)
def worker(
    url: Annotated[str, typer.Option(envvar="FOLDWISE_URL", help="Address of the coordinator.")],
    cache_root: Annotated[Path, typer.Option(envvar="FOLDWISE_CACHE_ROOT", help="Folder of the clip caches.")],
    models: Models = None,
    study: Annotated[
        str | None, typer.Option(envvar="FOLDWISE_STUDY", help="Serve this study alone and end with it.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(envvar="FOLDWISE_WORKER_NAME", help="Name in logs and lists; default: host and process."),
    ] = None,
    device: Device = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    alive_file: Annotated[
        Path | None,
        typer.Option(envvar="FOLDWISE_ALIVE_FILE", help="Touched whenever the worker gets on, for a probe."),
    ] = None,
) -> None:
    """Run a worker: it waits for its coordinator, trains folds and reports them."""
    from cli.secret import read_secret
    from cli.state import measurements_file
    from services.logs import configure_logs
    from worker.loop import Worker
    from worker.settings import WorkerSettings

    configure_logs()
    # Read anew for every request: Kubernetes replaces the tokens of service accounts.
    token = partial(read_secret, "FOLDWISE_TOKEN", what="the worker's token")
    token()
    settings = WorkerSettings(
        url=url,
        token=token,
        cache_root=cache_root.absolute(),
        models_root=models.absolute() if models else None,
        measurements=measurements_file(),
        alive_file=alive_file,
        study=study,
        device=device,
        threads=threads,
    )
    if name is not None:
        settings = replace(settings, name=name)
    code = Worker(settings).run()
    sys.stdout.flush()
    # All is given back; to unload PyTorch would take longer than a pod that is told to end should.
    os._exit(code)


app.command(epilog="Example: foldwise plan --preset ckplus-loso --gpu H200")(plan_command.plan)


@app.command("train-final", epilog="Example: foldwise train-final first")
def train_final(
    study: Annotated[str, typer.Argument(help="Name of the study.")],
    trial: Annotated[
        int | None, typer.Option(min=0, help="Number of a complete trial; default: the best.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the model's id starts with; default: STUDY-final.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it until the model is there.")] = True,
    url: Annotated[
        str | None, typer.Option(envvar="FOLDWISE_URL", help="Coordinator; the token is FOLDWISE_TOKEN.")
    ] = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Train a study's best configuration on all its clips, by a worker, and keep it as a model."""
    from pydantic import ValidationError

    from cli.study_commands import reach
    from cli.train_final import start_final, wait_for_model
    from services.contracts import TrainFinal
    from services.search_space import first_problem

    try:
        wanted = TrainFinal(name=name, trial=trial)
    except ValidationError as error:
        raise InvalidInput(first_problem(error)) from error
    console = _console(json)
    with reach(url, state) as client:
        final = start_final(client, study, wanted)
        before = final.spec.cross_validated
        if before is not None:
            console.print(
                f"trial {before.trial} of {study}: {before.accuracy:.2%} cross-validated; now all "
                f"{final.clips} clips, {final.spec.training.epochs} epochs (the median of its folds' best)",
                highlight=False,
                soft_wrap=True,
            )
        if not wait:
            print(final.model_dump_json() if json else f"follow it with: foldwise study watch {final.name}")
            return
        model = wait_for_model(client, final.name, console)
    console.print(f"model {model.id} is in the catalogue", highlight=False)
    if json:
        print(model.model_dump_json())


app.command(epilog="Example: foldwise export first-final --onnx first.onnx")(model_commands.export)
app.command(epilog="Example: foldwise predict first-final a.mp4 --video labelled.mp4")(model_commands.predict)


@app.command(epilog="Example: foldwise pretrain --name oulu --preset oulu-10fold --parameter temporal_size=3")
def pretrain(
    name: Annotated[str, typer.Option(help="What the model's id starts with.")],
    preset: Annotated[str | None, typer.Option(help="Preset that gives the training settings.")] = None,
    spec: Annotated[Path | None, typer.Option(help="Or a study in YAML or JSON.")] = None,
    cache: Annotated[str | None, typer.Option(help="Dataset, or dataset/fingerprint.")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of Table 1; left out is the paper's best on CK+."),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, as in `study create`.")] = None,
    cache_root: Annotated[Path | None, typer.Option(envvar="FOLDWISE_CACHE_ROOT")] = None,
    models: Models = None,
    device: Device = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Train one configuration on all clips of a dataset, for studies to start from with training.pretrained."""
    from cli.pretrain import pretrain as run
    from cli.pretrain import read_parameters
    from cli.progress import training_progress
    from cli.study_commands import build_spec

    folder = StateFolder(state or default_state())
    wanted = build_spec(preset=preset, spec=spec, space=None, name=name, cache=cache, settings=set_ or [])
    console = _console(json)
    with training_progress(console, wanted.training.epochs) as on_step:
        card = run(
            wanted,
            read_parameters(parameter or []),
            name,
            cache_root=cache_root or folder.caches,
            models_root=models or folder.models,
            device=device,
            on_step=on_step,
        )
    console.print(f"model {card.id}, trained on {card.clips} clips of {card.dataset}", highlight=False)
    console.print(f"start a study from it with: --set training.pretrained={card.id}", highlight=False)
    if json:
        print(card.model_dump_json())


app.command(epilog="Example: foldwise report first -o first-report")(result_commands.report)
app.command(
    epilog="Example: foldwise compare c1=ckplus-loso c2=oulu-10fold --preset ckplus-10fold --name table-4"
)(result_commands.compare)
app.command(epilog="Example: foldwise confirm first --top 3 --seeds 5")(result_commands.confirm)
app.command(epilog="Example: foldwise nested --preset ckplus-10fold --cache ckplus --name honest --outer 5")(
    result_commands.nested
)


@app.command(epilog="Example: foldwise replay demo 7 0")
def replay(
    study: Annotated[str, typer.Argument(help="Name of the study.")],
    trial: Annotated[int, typer.Argument(min=0, help="Number of the trial.")],
    fold: Annotated[int, typer.Argument(min=0, help="Index of the fold; the first is 0.")],
    url: Annotated[
        str | None, typer.Option(envvar="FOLDWISE_URL", help="Coordinator; the token is FOLDWISE_TOKEN.")
    ] = None,
    state: State = None,
    cache_root: Annotated[Path | None, typer.Option(envvar="FOLDWISE_CACHE_ROOT")] = None,
    models: Models = None,
    device: Device = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: as it was run then.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a finished fold again and compare it with what is stored. Exit code 1 if they differ."""
    from cli.progress import training_progress
    from cli.replay import replay as run
    from cli.show import comparison_lines
    from cli.study_commands import reach

    folder = StateFolder(state or default_state())
    console = _console(json)
    with reach(url, state) as client, training_progress(console, None) as on_step:
        record, found = run(
            client,
            study,
            trial,
            fold,
            cache_root=cache_root or folder.caches,
            models_root=models or folder.models,
            device=device,
            threads=threads,
            on_step=on_step,
        )
    for line in comparison_lines(record, found):
        console.print(line, highlight=False, soft_wrap=True)
    if json:
        print(json_library.dumps(asdict(found)))
    raise typer.Exit(0 if found.equal else EXIT_FAILURE)


@app.command(epilog="Example: foldwise dashboard --port 8081")
def dashboard(
    state: State = None,
    database_url: Database = None,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback it needs --url.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8081,
    url: Annotated[
        str | None,
        typer.Option(envvar="FOLDWISE_URL", help="Coordinator whose tokens are asked for, as passwords."),
    ] = None,
) -> None:
    """Serve Optuna's dashboard: open on 127.0.0.1, or behind the tokens of a coordinator."""
    from cli.dashboard import serve_behind_tokens, serve_on_loopback
    from cli.secret import is_given, read_database_url

    given = database_url is not None or is_given("FOLDWISE_DATABASE_URL")
    database = read_database_url(database_url) if given else None
    if host == LOOPBACK:
        serve_on_loopback(StateFolder(state or default_state()), database, port)
    else:
        serve_behind_tokens(database, url, host, port)


@app.command(epilog="Example: FOLDWISE_DATABASE_URL_FILE=url foldwise migrate --wait-seconds 300")
def migrate(
    database_url: Database = None,
    wait_seconds: Annotated[float, typer.Option(min=0, help="So long for the database to answer.")] = 0.0,
) -> None:
    """Bring a database up to date: our schema, Optuna's tables, and the dashboard's right to read them.

    The dashboard's role is that of FOLDWISE_DASHBOARD_DATABASE_URL or the file it names with _FILE.
    """
    from cli.migrate import bring_up_to_date
    from cli.secret import is_given, read_database_url

    reader = "FOLDWISE_DASHBOARD_DATABASE_URL"
    bring_up_to_date(
        read_database_url(database_url),
        reader_url=read_database_url(None, reader) if is_given(reader) else None,
        wait_seconds=wait_seconds,
    )
    print("the database is up to date")


@app.command(epilog="Example: foldwise logs first --follow")
def logs(
    study: Annotated[str, typer.Argument(help="Name of the study.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, help="Only so many last lines of each pod.")] = None,
    url: Annotated[
        str | None, typer.Option(envvar="FOLDWISE_URL", help="Coordinator; the token is FOLDWISE_TOKEN.")
    ] = None,
    state: State = None,
) -> None:
    """Print what a study's workers write in Kubernetes, each line after its pod's name."""
    from cli.study_commands import reach

    with reach(url, state) as client:
        client.logs(study, sys.stdout.buffer, follow=follow, tail=tail)


@app.command(epilog="Example: foldwise doctor --url http://127.0.0.1:8080")
def doctor(
    url: Annotated[
        str | None, typer.Option(envvar="FOLDWISE_URL", help="Coordinator; the token is FOLDWISE_TOKEN.")
    ] = None,
    state: State = None,
    cache_root: Annotated[Path | None, typer.Option(envvar="FOLDWISE_CACHE_ROOT")] = None,
    database_url: Database = None,
    json: Json = False,
) -> None:
    """Look at this machine, a service, a cluster: is anything wrong (exit code 1), and how to mend it."""
    from cli.doctor import Finding, look_at_cache, look_at_database, look_at_machine, look_at_service
    from cli.secret import is_given, read_database_url
    from cli.show import finding_lines
    from cli.study_commands import reach

    findings = list(look_at_machine())
    if cache_root is not None:
        findings.append(look_at_cache(cache_root))
    if database_url is not None or is_given("FOLDWISE_DATABASE_URL"):
        findings += look_at_database(read_database_url(database_url))
    place = chosen.get()
    if place is not None:
        from cli.cluster_doctor import look_at_cluster

        findings += look_at_cluster(place)
    try:
        if place or url or state or StateFolder(default_state()).service() is not None:
            with reach(url, state) as client:
                findings += look_at_service(client.connection)
    except FoldwiseError as error:
        findings.append(Finding(what="service", good=False, found=error.message))
    console = _console(json)
    for finding in findings:
        for line in finding_lines(finding):
            console.print(line, highlight=False, soft_wrap=True)
    if json:
        print(json_library.dumps([finding.as_json() for finding in findings]))
    raise typer.Exit(0 if all(finding.good for finding in findings) else EXIT_FAILURE)


@app.command(epilog="Example: foldwise up --workers 2, then: foldwise study create --preset ckplus-loso")
def up(
    state: State = None,
    workers: Annotated[int, typer.Option(min=0, max=64)] = 1,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the coordinator on 127.0.0.1.")] = 8080,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each worker.")] = None,
) -> None:
    """Run everything on this machine until Ctrl-C: PostgreSQL, a coordinator, workers."""
    from cli.local import local_service

    console = _console(False)
    folder = StateFolder(state or default_state())
    share = threads or max(1, (os.cpu_count() or 1) // max(1, workers))

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    with local_service(folder, workers=workers, port=port, say=say, threads=share) as service:
        say(f"{workers} workers; logs in {folder.logs}; caches in {folder.caches}")
        where = "" if state is None else f" --state {folder.folder}"
        token = f"foldwise token create me --scope write{where}"
        say(f"study page: {service.service.url}/  (a token to sign in: {token})")
        say(f"create a study with: foldwise study create --preset ckplus-loso{where}")
        say("Ctrl-C ends everything; `foldwise up` again goes on")
        while True:
            service.tend()
            time.sleep(1.0)


def main() -> None:
    """Run a command; an error a person can act on is one line and the exit code of its class."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        _refuse_root()
        app()
    except FoldwiseError as error:
        print(f"foldwise: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"foldwise: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(EXIT_FAILURE)
    except Interrupted:
        print("foldwise: stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(EXIT_TRY_AGAIN)


def _refuse_root() -> None:
    """An image is made for a user without rights; a pod that overrides that should not go unnoticed."""
    user = os.environ.get("FOLDWISE_IMAGE_USER")
    if user is not None and os.geteuid() == 0:
        raise InvalidInput(f"this image does not run as root; leave its user, {user}, or give another number")


def _interrupt(_number: int, _frame: object) -> None:
    raise Interrupted


def _console(json: bool) -> Console:
    # With --json, standard output belongs to the program that reads it.
    return Console(stderr=json)


if __name__ == "__main__":
    main()
