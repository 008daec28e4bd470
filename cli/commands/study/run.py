"""`foldwise study create, list, show, watch, start, pause, resume, stop, workers`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli.options import Json, Name, State, Url
from cli.reach import reach
from cli.spec_files import build_spec
from cli.terminal.tables import (
    confusion_table,
    folds_table,
    save_confusion,
    studies_table,
    study_summary,
    trials_table,
    workers_lines,
)
from cli.terminal.watch import watch as watch_study
from services.errors import NotFound

app = typer.Typer(no_args_is_help=True, help="Create, look at and steer studies.", rich_markup_mode="rich")


@app.command(epilog="Example: foldwise study create --preset ckplus-loso --name first --set trials=50")
def create(
    preset: Annotated[str | None, typer.Option(help="ckplus-loso, ckplus-10fold, oulu-10fold or demo.")] = None,
    spec: Annotated[Path | None, typer.Option(help="A study in YAML or JSON; wins over the preset.")] = None,
    space: Annotated[Path | None, typer.Option(help="A search space in YAML or JSON.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study.")] = None,
    cache: Annotated[str | None, typer.Option(help="Dataset, or dataset/fingerprint.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE with a dotted key, such as training.epochs=8.")
    ] = None,
    draft: Annotated[bool, typer.Option("--draft", help="Do not start it yet.")] = False,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Create a study and start it."""
    wanted = build_spec(preset=preset, spec=spec, space=space, name=name, cache=cache, settings=set_ or [])
    if draft:
        wanted = wanted.model_copy(update={"start": False})
    with reach(url, state) as client:
        study = client.create(wanted)
    if json:
        print(study.model_dump_json())
        return
    console = Console()
    study_summary(console, study)
    console.print(f"follow it with: foldwise study watch {study.name}")


@app.command("list")
def list_(url: Url = None, state: State = None, json: Json = False) -> None:
    """List all studies."""
    with reach(url, state) as client:
        studies = client.studies()
    if json:
        print("[" + ",".join(study.model_dump_json() for study in studies) + "]")
    elif studies:
        Console().print(studies_table(studies))
    else:
        print("there is no study yet; create one with: foldwise study create --preset ckplus-loso")


@app.command(epilog="Example: foldwise study show first --trial 12 --confusion confusion.png")
def show(
    name: Name,
    trial: Annotated[int | None, typer.Option(help="Show the folds and confusion of this trial.")] = None,
    confusion: Annotated[Path | None, typer.Option(help="Also draw the confusion matrix to this PNG.")] = None,
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
    if confusion is not None:
        if matrix is None:
            raise NotFound(f"study {name} has no finished fold to draw a confusion matrix of")
        save_confusion(matrix, confusion, f"{name}, trial {number}")
    if json:
        print(study.model_dump_json())
        return
    console = Console()
    if folds is not None and trial is not None:
        console.print(trials_table([t for t in trials if t.number == trial]))
        console.print(folds_table(folds))
    else:
        study_summary(console, study)
        console.print(trials_table(trials[-20:]))
    if matrix is not None:
        console.print(f"confusion of trial {number}")
        console.print(confusion_table(matrix))


@app.command()
def watch(name: Name, url: Url = None, state: State = None) -> None:
    """Follow a study until it is over."""
    with reach(url, state) as client:
        study_summary(Console(), watch_study(client, name, Console()))


@app.command(epilog="Example: foldwise study workers first 8")
def workers(
    name: Name,
    number: Annotated[
        int | None, typer.Argument(min=0, help="Pods of workers from now on; left out, they are shown.")
    ] = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Show a study's pods in Kubernetes, or say how many there should be."""
    with reach(url, state) as client:
        if number is not None:
            client.set_workers(name, number)
        found = client.study_workers(name)
    if json:
        print(found.model_dump_json())
        return
    console = Console()
    for line in workers_lines(found):
        console.print(line, highlight=False, soft_wrap=True)


@app.command()
def start(name: Name, url: Url = None, state: State = None) -> None:
    """Start a draft."""
    _move(name, "start", url, state)


@app.command()
def pause(
    name: Name,
    now: Annotated[bool, typer.Option("--now", help="Abandon the folds under way.")] = False,
    url: Url = None,
    state: State = None,
) -> None:
    """Pause: folds under way finish and count."""
    _move(name, "pause", url, state, now=now)


@app.command()
def resume(name: Name, url: Url = None, state: State = None) -> None:
    """Go on with a paused study."""
    _move(name, "resume", url, state)


@app.command()
def stop(name: Name, url: Url = None, state: State = None) -> None:
    """End a study for good; what is done stays."""
    _move(name, "stop", url, state)


def _move(name: str, verb: str, url: str | None, state: Path | None, *, now: bool = False) -> None:
    with reach(url, state) as client:
        study = client.change_state(name, verb, now=now)
    print(f"{study.name} is {study.state}")
