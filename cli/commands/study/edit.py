"""`foldwise study enqueue, budget, clone, export, import, delete`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from cli.options import Json, Settings, State, Study, Url, console
from cli.reach import reach
from cli.spec_files import apply_setting, read_file, read_value
from cli.terminal.tables import study_summary
from services.contracts import Clone, Enqueue, StudyView
from services.errors import InvalidInput
from services.search_space import first_problem

app = typer.Typer()


@app.command(epilog="Example: foldwise study enqueue first --parameter dropout=0.3 --parameter activation=ELU")
def enqueue(
    name: Study,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Hyper-parameter of one configuration (default: the paper's best on CK+, or the study's "
            "training settings); repeatable.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Configurations in YAML or JSON: a list of mappings from name to value.")
    ] = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Enqueue configurations: they run before the sampler suggests new ones."""
    if (parameter is None) == (file is None):
        raise InvalidInput("no configuration is given; use --parameter NAME=VALUE, or --file FILE")
    wanted = _read_list(file) if file is not None else [_read_parameters(parameter or [])]
    try:
        configurations = Enqueue.model_validate({"configurations": wanted}).configurations
    except ValidationError as error:
        raise InvalidInput(first_problem(error)) from error
    with reach(url, state) as client:
        enqueued = client.enqueue(name, configurations)
    if json:
        print(enqueued.model_dump_json())
        return
    first, last = enqueued.numbers[0], enqueued.numbers[-1]
    print(
        f"{name} will run it as trial {first}"
        if first == last
        else f"{name} will run them as trials {first} to {last}"
    )


@app.command(epilog="Example: foldwise study budget first 1000")
def budget(
    name: Study,
    trials: Annotated[int, typer.Argument(min=1, help="Total number of trials.")],
    url: Url = None,
    state: State = None,
) -> None:
    """Set the total number of trials of a study; a complete study continues if it is larger."""
    with reach(url, state) as client:
        study = client.set_budget(name, trials)
    print(f"{study.name} is {study.state} with {sum(study.trials.values())} of {study.spec.trials} trials")


@app.command(epilog="Example: foldwise study clone first second --set seed=1 --set warm_start.study=first")
def clone(
    name: Study,
    new: Annotated[str, typer.Argument(help="Name of the new study.")],
    set_: Settings = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Create a study with the settings and clips of another one."""
    changes: dict[str, Any] = {}
    for setting in set_ or []:
        apply_setting(changes, setting)
    try:
        wanted = Clone(name=new, changes=changes)
    except ValidationError as error:
        raise InvalidInput(first_problem(error)) from error
    with reach(url, state) as client:
        study = client.clone(name, wanted)
    _show(study, json)


@app.command(epilog="Example: foldwise study export first --out first.jsonl")
def export(
    name: Study,
    out: Annotated[
        Path | None, typer.Option(help="File to write (default: STUDY.jsonl in the current folder).")
    ] = None,
    url: Url = None,
    state: State = None,
) -> None:
    """Write a study with all its results to a file of JSON lines."""
    target = out or Path(f"{name}.jsonl")
    # Renamed when it is complete, so that a killed export leaves no half file.
    part = target.with_name(f"{target.name}.part")
    try:
        with reach(url, state) as client, part.open("wb") as file:
            client.export(name, file)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    print(f"{target}: import it with: foldwise study import {target}")


@app.command("import", epilog="Example: foldwise study import first.jsonl --name first-again")
def import_(
    file: Annotated[Path, typer.Argument(help="File that `study export` wrote.")],
    name: Annotated[
        str | None, typer.Option(help="New name of the study (default: the name in the file).")
    ] = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Import a study from a file and check every result. If it ran when it was exported, it starts paused."""
    with reach(url, state) as client, file.open("rb") as content:
        study = client.import_study(content, name)
    _show(study, json)


@app.command(epilog="Example: foldwise study delete first")
def delete(
    name: Study,
    confirm: Annotated[
        str | None, typer.Option(help="Name of the study again, to delete it without being asked.")
    ] = None,
    url: Url = None,
    state: State = None,
) -> None:
    """Delete a study with all its trials and results; this cannot be undone.

    To keep a copy, write one first with `foldwise study export`.
    """
    with reach(url, state) as client:
        study = client.get(name)
        if confirm is None:
            if not sys.stdin.isatty():
                raise InvalidInput(
                    f"deleting {name} without a terminal needs --confirm {name}", field="confirm"
                )
            print(
                f"{name}: {sum(study.trials.values())} trials, {study.folds_done} folds; this cannot be "
                f"undone, so keep a copy first with: foldwise study export {name}"
            )
            confirm = typer.prompt("type the name of the study to delete it")
        client.delete(name, confirm)
    print(f"{name} is deleted")


def _show(study: StudyView, json: bool) -> None:
    if json:
        print(study.model_dump_json())
    else:
        study_summary(console(False), study)


def _read_parameters(settings: list[str]) -> dict[str, Any]:
    parameters = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise InvalidInput(f"--parameter {setting!r}: write NAME=VALUE, such as dropout=0.3")
        parameters[name] = read_value("--parameter", setting, value)
    return parameters


def _read_list(path: Path) -> list[Any]:
    content = read_file(path, "file")
    if not isinstance(content, list):
        raise InvalidInput(
            f"{path} holds no list of configurations; write one mapping per configuration", field="file"
        )
    return content
