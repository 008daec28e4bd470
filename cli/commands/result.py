"""`foldwise report, compare, confirm, nested, replay`: what a study found, and how far to trust it."""

from __future__ import annotations

import json as json_library
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table as RichTable

from cli.options import (
    Cache,
    CacheRoot,
    Device,
    Devices,
    Json,
    Models,
    Out,
    Preset,
    Settings,
    Space,
    Spec,
    State,
    Study,
    Url,
    console,
    state_folder,
)
from cli.reach import find_clips, reach, reach_workers
from cli.spec_files import build_spec
from cli.terminal.watch import watch
from client.study_client import StudyClient
from services.contracts import StudyView
from services.errors import EXIT_FAILURE, InvalidInput

if TYPE_CHECKING:
    # matplotlib takes a while to load.
    from report.table import Table

app = typer.Typer()


@app.command(epilog="Example: foldwise report first -o first-report")
def report(
    name: Study,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; created if missing.")],
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Write a study's report: one HTML file, figures as SVG and PNG, tables as CSV and LaTeX."""
    from report.write import PAGE, write_report

    with reach(url, state) as client:
        findings = write_report(client, name, out)
    if json:
        print(findings.model_dump_json())
        return
    console(False).print(f"report of {name}: {out / PAGE}", highlight=False, soft_wrap=True)


@app.command(
    epilog="Example: foldwise compare c1=ckplus-loso c2=oulu-10fold --preset ckplus-10fold --name table-4"
)
def compare(
    configurations: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=SOURCE...",
            help="NAME=STUDY takes the best trial of a study, NAME=FILE.yaml a configuration; append @MODEL, "
            "an id or its beginning, to start its training from a model. The first is compared with each "
            "of the others.",
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the study that runs the configurations.")],
    preset: Preset = None,
    spec: Spec = None,
    cache: Cache = None,
    set_: Settings = None,
    out: Out = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Run configurations on the same folds of one dataset and test whether the first one is better."""
    from cli.evaluation import comparison

    candidates = [comparison.read_candidate(text) for text in configurations]
    wanted = build_spec(
        preset=preset,
        spec=spec,
        space=None,
        name=name,
        cache=cache,
        settings=set_ or [],
        clips=find_clips(url, state),
    )
    output = console(json)
    with reach(url, state) as client:
        result = comparison.compare(client, candidates, wanted, watch=_watcher(client, output))
    tables = (comparison.comparison_table(result), comparison.compared_readings_table(result))
    _finish(
        output,
        result,
        tables,
        comparison.comparison_warnings(result),
        out=out,
        json=json,
        for_programs=[comparison.folds_table(result)],
    )


@app.command(epilog="Example: foldwise confirm first --top 3 --seeds 5")
def confirm(
    name: Study,
    top: Annotated[int, typer.Option(min=1, max=100, help="Number of best complete trials to repeat.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Number of new seeds for each.")] = 5,
    out: Out = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Repeat the best trials of a study with new seeds, to see how much of the best accuracy was luck."""
    from cli.evaluation import confirmation

    output = console(json)
    with reach(url, state) as client:
        found = confirmation.confirm(client, name, top=top, seeds=seeds, watch=_watcher(client, output))
    tables = (confirmation.confirmation_table(found), confirmation.confirmed_readings_table(found))
    _finish(output, found, tables, confirmation.confirmation_sentences(found), out=out, json=json)


@app.command(epilog="Example: foldwise nested --preset ckplus-10fold --cache ckplus --name honest --outer 5")
def nested(
    name: Annotated[str, typer.Option(help="Beginning of the names of the studies it creates.")],
    outer: Annotated[
        int, typer.Option(min=2, max=1000, help="Number of outer folds; each runs a whole search.")
    ] = 5,
    preset: Preset = None,
    spec: Spec = None,
    space: Space = None,
    cache: Cache = None,
    set_: Settings = None,
    out: Out = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Evaluate a whole search by nested cross-validation: leave subjects out, search, test on them; repeat."""
    from cli.evaluation import nested as nesting

    wanted = build_spec(
        preset=preset,
        spec=spec,
        space=space,
        name=name,
        cache=cache,
        settings=set_ or [],
        clips=find_clips(url, state),
    )
    output = console(json)
    with reach(url, state) as client:
        found = nesting.nested(client, wanted, outer=outer, watch=_watcher(client, output))
    _finish(
        output,
        found,
        (nesting.nested_table(found), nesting.nested_readings_table(found)),
        [nesting.nested_sentence(found)],
        out=out,
        json=json,
    )


@app.command(epilog="Examples: foldwise replay demo; foldwise replay demo 7 0")
def replay(
    study: Study,
    trial: Annotated[
        int | None,
        typer.Argument(min=0, metavar="TRIAL", help="Number of a trial (default: the whole study)."),
    ] = None,
    fold: Annotated[
        int | None, typer.Argument(min=0, metavar="FOLD", help="Index of a fold of the trial, from 0.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the study that runs a whole study again (default: NAME-replay).")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Number of workers if no service runs (default: one per GPU, or 2 on the CPU)."
        ),
    ] = None,
    devices: Devices = None,
    url: Url = None,
    state: State = None,
    cache_root: CacheRoot = None,
    models: Models = None,
    device: Device = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads for one fold (default: as in the recorded run).")
    ] = None,
    json: Json = False,
) -> None:
    """Run a whole study or one of its folds again, and compare the results. Exit code 1 if they differ.

    A whole study runs under another name on the service's workers. If no service runs, one is started for it.
    """
    if (trial is None) != (fold is None):
        raise InvalidInput(
            "give TRIAL and FOLD to replay one fold, or neither to replay the study", field="fold"
        )
    if trial is None or fold is None:
        for option, given in (("--device", device), ("--threads", threads)):
            if given is not None:
                raise InvalidInput(f"{option} is for one fold; a whole study runs on the service's workers")
        equal = _replay_study(study, name, workers, devices, url, state, json=json)
    else:
        equal = _replay_fold(study, trial, fold, url, state, cache_root, models, device, threads, json=json)
    raise typer.Exit(0 if equal else EXIT_FAILURE)


def _replay_study(
    study: str,
    name: str | None,
    workers: int | None,
    devices: str | None,
    url: str | None,
    state: Path | None,
    *,
    json: bool,
) -> bool:
    from cli.evaluation.repetition import repeat
    from cli.terminal.tables import repetition_lines

    output = console(json)

    def notify(text: str) -> None:
        output.print(text, highlight=False, soft_wrap=True)

    with reach_workers(url, state, study, devices=devices, workers=workers, notify=notify) as (client, tend):
        found = repeat(client, study, name, watch=_watcher(client, output, on_poll=tend))
    for line in repetition_lines(found):
        notify(line)
    if json:
        print(json_library.dumps(asdict(found)))
    return found.equal


def _replay_fold(
    study: str,
    trial: int,
    fold: int,
    url: str | None,
    state: Path | None,
    cache_root: Path | None,
    models: Path | None,
    device: str | None,
    threads: int | None,
    *,
    json: bool,
) -> bool:
    from cli.evaluation.replay import replay as run
    from cli.terminal.progress import training_progress
    from cli.terminal.tables import replay_lines

    folder = state_folder(state)
    with reach(url, state) as client, training_progress(console(json), None) as on_step:
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
    for line in replay_lines(record, found):
        console(json).print(line, highlight=False, soft_wrap=True)
    if json:
        print(json_library.dumps(asdict(found)))
    return found.equal


def _watcher(
    client: StudyClient, console: Console, *, on_poll: Callable[[], None] = lambda: None
) -> Callable[[StudyView], StudyView]:
    def until_over(study: StudyView) -> StudyView:
        if study.state.over:
            return study
        console.print(
            f"study {study.name}: {study.spec.trials} trials of {study.folds} folds; the service's workers run "
            "them like any others",
            highlight=False,
            soft_wrap=True,
        )
        return watch(client, study.name, console, on_poll=on_poll)

    return until_over


def _finish(
    output: Console,
    result: BaseModel,
    tables: Sequence[Table],
    sentences: Sequence[str],
    *,
    out: Path | None,
    json: bool,
    for_programs: Sequence[Table] = (),
) -> None:
    """Write all tables to `out`; print the result as JSON, or its tables and sentences."""
    _write(out, *tables, *for_programs)
    if json:
        print(result.model_dump_json())
        return
    for table in tables:
        _show(output, table)
    for sentence in sentences:
        output.print(sentence, highlight=False)


def _write(folder: Path | None, *tables: Table) -> None:
    from report.table import write_csv, write_latex

    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for table in tables:
            write_csv(table, folder / f"{table.name}.csv")
            write_latex(table, folder / f"{table.name}.tex")
    except OSError as error:
        raise InvalidInput(f"cannot write to {folder}: {error.strerror}; choose another --out") from error


def _show(console: Console, table: Table) -> None:
    shown = RichTable(title=table.caption, title_justify="left", box=None, pad_edge=False)
    for column, right in zip(table.columns, table.right_aligned, strict=True):
        shown.add_column(column, justify="right" if right else "left")
    for row in table.text():
        shown.add_row(*row)
    console.print(shown)
