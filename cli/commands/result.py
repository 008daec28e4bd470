"""`foldwise report`, `compare`, `confirm` and `nested`: what came of a study, and how far to trust it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as RichTable

from cli.options import Json, Name, State, Url
from cli.reach import reach
from cli.spec_files import build_spec
from cli.terminal.watch import watch
from client.study_client import StudyClient
from services.contracts import StudyView
from services.errors import InvalidInput

if TYPE_CHECKING:
    from report.table import Table

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the tables, as CSV and LaTeX.")]
Preset = Annotated[str | None, typer.Option(help="Preset that gives dataset, split and training.")]
Spec = Annotated[Path | None, typer.Option(help="Or a study in YAML or JSON.")]
Cache = Annotated[str | None, typer.Option(help="Dataset, or dataset/fingerprint.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, as in `study create`.")]


def report(
    name: Name,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; made if missing.")],
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
    Console().print(f"report of {name}: {out / PAGE}", highlight=False, soft_wrap=True)


def compare(
    configurations: Annotated[
        list[str],
        typer.Argument(
            help="NAME=STUDY, the best of a study, or NAME=FILE.yaml; with @MODEL behind it to start from a "
            "model. The first is compared with each of the others."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the study that runs them.")],
    preset: Preset = None,
    spec: Spec = None,
    cache: Cache = None,
    set_: Settings = None,
    out: Out = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Run configurations on the same folds of one dataset, and test whether the first is better."""
    from cli.evaluation import comparison

    candidates = [comparison.read_candidate(text) for text in configurations]
    wanted = build_spec(preset=preset, spec=spec, space=None, name=name, cache=cache, settings=set_ or [])
    console = Console(stderr=json)
    with reach(url, state) as client:
        result = comparison.compare(client, candidates, wanted, watch=_watcher(client, console))
    table = comparison.comparison_table(result)
    _write(out, table, comparison.folds_table(result))
    if json:
        print(result.model_dump_json())
        return
    _show(console, table)
    for warning in comparison.comparison_warnings(result):
        console.print(warning, highlight=False)


def confirm(
    name: Name,
    top: Annotated[int, typer.Option(min=1, max=100, help="How many of the best complete trials.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="With how many other seeds each.")] = 5,
    out: Out = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Run the best trials of a study again with other seeds: how much of its best number was luck."""
    from cli.evaluation import confirmation

    console = Console(stderr=json)
    with reach(url, state) as client:
        found = confirmation.confirm(client, name, top=top, seeds=seeds, watch=_watcher(client, console))
    table = confirmation.confirmation_table(found)
    _write(out, table)
    if json:
        print(found.model_dump_json())
        return
    _show(console, table)
    console.print(confirmation.confirmation_sentence(found), highlight=False)


def nested(
    name: Annotated[str, typer.Option(help="Beginning of the names of its studies.")],
    outer: Annotated[int, typer.Option(min=2, max=1000, help="Outer folds: as many searches are run.")] = 5,
    preset: Preset = None,
    spec: Spec = None,
    space: Annotated[Path | None, typer.Option(help="Search space in YAML or JSON.")] = None,
    cache: Cache = None,
    set_: Settings = None,
    out: Out = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Judge a whole search: run it without each part of the subjects, and measure its best on that part."""
    from cli.evaluation import nested as nesting

    wanted = build_spec(preset=preset, spec=spec, space=space, name=name, cache=cache, settings=set_ or [])
    console = Console(stderr=json)
    with reach(url, state) as client:
        found = nesting.nested(client, wanted, outer=outer, watch=_watcher(client, console))
    table = nesting.nested_table(found)
    _write(out, table)
    if json:
        print(found.model_dump_json())
        return
    _show(console, table)
    console.print(nesting.nested_sentence(found), highlight=False)


def _watcher(client: StudyClient, console: Console) -> Callable[[StudyView], StudyView]:
    def until_over(study: StudyView) -> StudyView:
        if study.state.over:
            return study
        console.print(
            f"study {study.name}: {study.spec.trials} trials of {study.folds} folds; workers take them like "
            "any others, and Ctrl-C leaves them running",
            highlight=False,
            soft_wrap=True,
        )
        return watch(client, study.name, console)

    return until_over


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
