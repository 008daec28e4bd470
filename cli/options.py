"""Options and arguments that several commands take, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Url = Annotated[
    str | None,
    typer.Option(envvar="FOLDWISE_URL", help="Address of the coordinator; the token is FOLDWISE_TOKEN."),
]


State = Annotated[Path | None, typer.Option("--state", help="State folder of a `foldwise up` on this machine.")]


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs.")]


Name = Annotated[str, typer.Argument(help="Name of the study.")]
