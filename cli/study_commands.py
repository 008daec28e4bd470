"""`foldwise study ...`: create, look at and steer studies over REST."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError
from rich.console import Console

from cli.cluster_access import chosen, reach_release
from cli.presets import get_preset
from cli.secret import read_secret
from cli.show import (
    confusion_table,
    folds_table,
    save_confusion,
    studies_table,
    study_summary,
    trials_table,
    workers_lines,
)
from cli.state import StateFolder, default_state
from cli.study_client import StudyClient
from cli.watch import watch as watch_study
from services.contracts import StudySpec
from services.errors import InvalidInput, NotFound
from services.search_space import first_problem, load_space
from worker.coordinator_client import Connection

app = typer.Typer(no_args_is_help=True, help="Create, look at and steer studies.", rich_markup_mode="rich")

Url = Annotated[
    str | None,
    typer.Option(envvar="FOLDWISE_URL", help="Address of the coordinator; the token is FOLDWISE_TOKEN."),
]
State = Annotated[Path | None, typer.Option("--state", help="State folder of a `foldwise up` on this machine.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs.")]
Name = Annotated[str, typer.Argument(help="Name of the study.")]


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


def build_spec(
    *,
    preset: str | None,
    spec: Path | None,
    space: Path | None,
    name: str | None,
    cache: str | None,
    settings: list[str],
) -> StudySpec:
    """A spec from a preset, then a file, then single options; later ones win.

    Raises:
        InvalidInput, NotFound: naming the field and its value.
    """
    if preset is None and spec is None:
        raise InvalidInput("say what to search: --preset NAME or --spec FILE", field="preset")
    data: dict[str, Any] = get_preset(preset).model_dump(mode="json") if preset else {}
    if spec is not None:
        data.update(_read_mapping(spec))
    if space is not None:
        data["space"] = load_space(space).model_dump(mode="json")
    for setting in settings:
        apply_setting(data, setting)
    data.update({k: v for k, v in (("name", name), ("cache", cache)) if v is not None})
    try:
        return StudySpec.model_validate(data)
    except ValidationError as error:
        raise InvalidInput(first_problem(error)) from error


@contextmanager
def reach(url: str | None, state: Path | None) -> Iterator[StudyClient]:
    """A client of the coordinator in the cluster that was chosen, at `url`, or on this machine.

    Raises:
        InvalidInput: none is there, or the token is missing.
        NotFound, Unavailable: the cluster has no release, or none that can be reached.
    """
    place = chosen.get()
    if place is not None:
        with (
            reach_release(place) as (address, admin),
            Connection(address, admin, give_up_after=5.0) as connection,
        ):
            yield StudyClient(connection)
        return
    if url is not None and state is None:
        token = read_secret("FOLDWISE_TOKEN", what=f"the token for {url}")
    else:
        folder = StateFolder(state or default_state())
        service = folder.service()
        if service is None:
            raise InvalidInput(
                f"no foldwise runs on {folder.folder}; start it with `foldwise up`, or give --state or --url"
            )
        url, token = service.url, service.admin_token
    with Connection(url, token, give_up_after=5.0) as connection:
        yield StudyClient(connection)


def _move(name: str, verb: str, url: str | None, state: Path | None, *, now: bool = False) -> None:
    with reach(url, state) as client:
        study = client.move(name, verb, now=now)
    print(f"{study.name} is {study.state}")


def read_file(path: Path, field: str) -> Any:
    """What a YAML or JSON file says.

    Raises:
        NotFound: it cannot be read.
        InvalidInput: it is neither.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}", field=field) from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInput(f"{path} is neither YAML nor JSON", field=field) from error


def _read_mapping(path: Path) -> dict[str, Any]:
    content = read_file(path, "spec")
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} holds no mapping of a study's fields", field="spec")
    return content


def apply_setting(data: dict[str, Any], setting: str) -> None:
    """Set what KEY=VALUE names in nested mappings.

    Raises:
        InvalidInput: it is no KEY=VALUE, or its key names a field of what has none.
    """
    key, equals, value = setting.partition("=")
    if not equals:
        raise InvalidInput(f"--set {setting!r}: write KEY=VALUE, such as trials=50")
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InvalidInput(f"--set {setting!r}: {parent} has no fields")
        data = inner
    if last == "kind":
        # Another kind of sampler or protocol has other fields.
        data.clear()
    data[last] = read_value("--set", setting, value)


def read_value(option: str, setting: str, value: str) -> Any:
    """What the right side of an option's KEY=VALUE stands for.

    Raises:
        InvalidInput: it is no YAML.
    """
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInput(f"{option} {setting!r}: {value!r} is no value") from error
