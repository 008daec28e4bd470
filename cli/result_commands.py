"""`foldwise report`: what came of a study, for people and papers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli.study_commands import Json, Name, State, Url, reach


def report(
    name: Name,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; made if missing.")],
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Write a study's report: one HTML file, figures as SVG and PNG, tables as CSV and LaTeX."""
    from cli.report.write import PAGE, write_report

    with reach(url, state) as client:
        findings = write_report(client, name, out)
    if json:
        print(findings.model_dump_json())
        return
    Console().print(f"report of {name}: {out / PAGE}", highlight=False, soft_wrap=True)
