"""`foldwise study create, list, show, watch, workers, start, pause, resume, stop`, and `foldwise logs`."""

from __future__ import annotations

import json as json_library
import sys
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import typer

from cli.cluster_access import chosen_context
from cli.commands.study.fitting import agree_on_study
from cli.options import Cache, Json, Preset, Settings, Space, Spec, State, Study, Url, console
from cli.reach import find_clips, reach
from cli.spec_files import build_spec
from cli.terminal.tables import (
    confusion_table,
    digest_line,
    folds_table,
    save_confusion,
    studies_table,
    study_summary,
    trials_table,
    workers_lines,
)
from cli.terminal.watch import watch as watch_study
from client.study_client import StudyClient
from services.contracts import StudyDigest, StudySpec
from services.errors import InvalidInput, NotFound

app = typer.Typer(
    no_args_is_help=True, help="Create, watch, control and move studies.", rich_markup_mode="rich"
)


@app.command(
    epilog="Examples: foldwise study create --cache lab; foldwise study create first --preset ckplus-loso"
)
def create(
    study: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the study (default: the preset's).")
    ] = None,
    preset: Preset = None,
    spec: Spec = None,
    space: Space = None,
    name: Annotated[str | None, typer.Option(help="Name of the study, as NAME.")] = None,
    cache: Cache = None,
    set_: Settings = None,
    draft: Annotated[bool, typer.Option("--draft", help="Create the study without starting it.")] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", help="Take the smaller settings that it would offer, without being asked."),
    ] = False,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Create a study and start it. Without --preset and --spec it fits the clip cache.

    Such a study leaves out one subject at a time if there are at most 20, and has ten folds otherwise. The
    command says what it will take, and offers smaller settings if that is more than a day on a CPU.
    """
    if study is not None and name not in {None, study}:
        raise InvalidInput(f"the study has two names, {study} and {name}; give one", field="name")
    find, given = lru_cache(find_clips(url, state)), set_ or []

    def build(further: list[str]) -> StudySpec:
        return build_spec(
            preset=preset,
            spec=spec,
            space=space,
            name=study or name,
            cache=cache,
            settings=[*further, *given],
            clips=find,
        )

    wanted = build([])
    if preset is None and spec is None:
        wanted = agree_on_study(
            build,
            find(wanted.cache),
            {setting.partition("=")[0] for setting in given},
            is_local=url is None and chosen_context.get() is None,
            yes=yes,
            console=console(json),
        )
    if draft:
        wanted = wanted.model_copy(update={"start": False})
    with reach(url, state) as client:
        created = client.create(wanted)
    if json:
        print(created.model_dump_json())
        return
    output = console(json)
    study_summary(output, created)
    for warning in created.warnings:
        output.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
    output.print(f"follow it with: foldwise study watch {created.name}")


@app.command("list")
def list_(url: Url = None, state: State = None, json: Json = False) -> None:
    """List all studies."""
    with reach(url, state) as client:
        studies = client.studies()
    if json:
        print("[" + ",".join(study.model_dump_json() for study in studies) + "]")
    elif studies:
        console(json).print(studies_table(studies))
    else:
        print("there is no study yet; create one with: foldwise study create --cache NAME")


@app.command(epilog="Example: foldwise study show first --trial 12 --confusion confusion.png")
def show(
    name: Study,
    trial: Annotated[
        int | None, typer.Option(help="Show the folds and confusion matrix of this trial.")
    ] = None,
    confusion: Annotated[
        Path | None, typer.Option(help="Also draw the confusion matrix into this PNG file.")
    ] = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Show a study with its best trial, or one of its trials."""
    with reach(url, state) as client:
        study = client.get(name)
        number = trial if trial is not None else (study.best.number if study.best else None)
        matrix = client.confusion(name, number) if number is not None else None
        folds = client.folds(name, trial) if trial is not None else None
        trials = client.trials(name)
        # The folds of one trial are shown without it.
        digest = _digest(client, name) if json or trial is None else None
    if confusion is not None:
        if matrix is None:
            raise NotFound(f"study {name} has no finished fold, so there is no confusion matrix to draw")
        save_confusion(matrix, confusion, f"{name}, trial {number}")
    if json:
        about = {} if digest is None else {"digest": digest.digest, "depends_on": digest.depends_on}
        print(json_library.dumps({**study.model_dump(mode="json"), **about}))
        return
    output = console(json)
    if folds is not None and trial is not None:
        output.print(trials_table([t for t in trials if t.number == trial]))
        output.print(folds_table(folds))
    else:
        study_summary(output, study)
        if digest is not None:
            output.print(digest_line(digest), highlight=False, soft_wrap=True)
        output.print(trials_table(trials[-20:]))
    if matrix is not None and number is not None:
        output.print(confusion_table(matrix, number))


@app.command()
def watch(name: Study, url: Url = None, state: State = None) -> None:
    """Show the progress of a study until it is over."""
    with reach(url, state) as client:
        study_summary(console(False), watch_study(client, name, console(False)))


@app.command(epilog="Example: foldwise study workers first 8")
def workers(
    name: Study,
    number: Annotated[
        int | None,
        typer.Argument(
            min=0,
            metavar="NUMBER",
            help="Number of worker pods to run from now on; omit it to list the pods.",
        ),
    ] = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """List a study's worker pods in Kubernetes, or set how many should run."""
    with reach(url, state) as client:
        if number is not None:
            client.set_workers(name, number)
        found = client.study_workers(name)
    if json:
        print(found.model_dump_json())
        return
    output = console(json)
    for line in workers_lines(found):
        output.print(line, highlight=False, soft_wrap=True)


@app.command()
def start(name: Study, url: Url = None, state: State = None) -> None:
    """Start a study created with --draft."""
    _move(name, "start", url, state)


@app.command()
def pause(
    name: Study,
    now: Annotated[
        bool, typer.Option("--now", help="Abandon the running folds instead of finishing them.")
    ] = False,
    url: Url = None,
    state: State = None,
) -> None:
    """Pause a study; running folds finish and count."""
    _move(name, "pause", url, state, now=now)


@app.command()
def resume(name: Study, url: Url = None, state: State = None) -> None:
    """Resume a paused study."""
    _move(name, "resume", url, state)


@app.command()
def stop(name: Study, url: Url = None, state: State = None) -> None:
    """Stop a study for good; its results are kept."""
    _move(name, "stop", url, state)


def logs(
    study: Study,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until Ctrl-C.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, help="Number of last lines to print per pod.")] = None,
    url: Url = None,
    state: State = None,
) -> None:
    """Print the logs of a study's workers in Kubernetes; each line begins with the pod's name."""
    with reach(url, state) as client:
        client.logs(study, sys.stdout.buffer, follow=follow, tail=tail)


def _digest(client: StudyClient, name: str) -> StudyDigest | None:
    try:
        return client.digest(name)
    except NotFound:
        # A coordinator of an earlier version has none.
        return None


def _move(name: str, verb: str, url: str | None, state: Path | None, *, now: bool = False) -> None:
    with reach(url, state) as client:
        study = client.change_state(name, verb, now=now)
    print(f"{study.name} is {study.state}")
