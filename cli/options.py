"""Options and arguments that several commands take, each defined once, and the console they print to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli.local.state import StateFolder
from cli.terminal.consoles import PlainConsole
from client.local_service import default_state
from services.presets import PRESET_NAMES

Study = Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study.")]

Url = Annotated[
    str | None,
    typer.Option(envvar="FOLDWISE_URL", help="URL of the coordinator; FOLDWISE_TOKEN holds its token."),
]
State = Annotated[
    Path | None,
    typer.Option("--state", help="State folder of `foldwise up` (default: in the user's data folder)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output, for programs.")]

Preset = Annotated[
    str | None,
    typer.Option(
        help=f"Preset to start from: {', '.join(PRESET_NAMES[:-1])} or {PRESET_NAMES[-1]} (the last two "
        "fit any clip cache)."
    ),
]
Spec = Annotated[
    Path | None, typer.Option(help="Study in YAML or JSON; its fields replace those of the preset.")
]
Space = Annotated[Path | None, typer.Option(help="Search space in YAML or JSON.")]
Cache = Annotated[str | None, typer.Option(help="Clip cache to train on: DATASET or DATASET/FINGERPRINT.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set one field of the study, such as training.epochs=8; repeatable."
    ),
]

CacheRoot = Annotated[
    Path | None,
    typer.Option(
        envvar="FOLDWISE_CACHE_ROOT", help="Folder of the clip caches (default: in your user data folder)."
    ),
]
Models = Annotated[
    Path | None,
    typer.Option(
        envvar="FOLDWISE_MODELS", help="Folder of the model catalogue (default: in the state folder)."
    ),
]
Catalogue = Annotated[
    Path | None,
    typer.Option(
        "--models", envvar="FOLDWISE_MODELS", help="Folder of the model catalogue (default: no catalogue)."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Torch device, such as cpu or cuda:0 (default: a GPU if there is one).")
]
Devices = Annotated[
    str | None,
    typer.Option(
        help="Device of each worker, such as 0,2 or cuda:0,cuda:0 or cpu (default: all GPUs, or else the CPU)."
    ),
]
Database = Annotated[
    str | None,
    typer.Option(
        help="URL of the PostgreSQL database (default: FOLDWISE_DATABASE_URL, or the content of the file "
        "FOLDWISE_DATABASE_URL_FILE)."
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder to write the tables to, as CSV and LaTeX.")
]


def console(json: bool) -> Console:
    """The console for messages: with --json, standard output belongs to the program that reads it."""
    return PlainConsole(stderr=json)


def state_folder(state: Path | None) -> StateFolder:
    """The state folder given by --state, or the default one."""
    return StateFolder(state or default_state())
