"""`foldwise workers list, drain`: the workers of a coordinator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from cli.options import Json, State, Url, console
from cli.reach import reach
from services.contracts import WorkerView

app = typer.Typer(no_args_is_help=True, help="List workers and drain them.", rich_markup_mode="rich")


@app.command("list")
def list_(url: Url = None, state: State = None, json: Json = False) -> None:
    """List the workers seen in the last five minutes, with the fold that each one runs."""
    with reach(url, state) as client:
        workers = client.workers()
    if json:
        print("[" + ",".join(worker.model_dump_json() for worker in workers) + "]")
    elif workers:
        console(False).print(_table(workers))
    else:
        print(
            "no worker was seen in the last five minutes; start one with: "
            "foldwise worker --url URL --cache-root FOLDER"
        )


@app.command(epilog="Example: foldwise workers drain gpu-node-3 --now")
def drain(
    worker: Annotated[str, typer.Argument(help="Name or id of the worker.")],
    now: Annotated[bool, typer.Option("--now", help="Release its fold instead of finishing it.")] = False,
    url: Url = None,
    state: State = None,
) -> None:
    """Stop a worker after the fold that it runs; its process exits with code 75."""
    with reach(url, state) as client:
        client.drain(worker, now=now)
    print(f"worker {worker} stops " + ("at its next heartbeat" if now else "after its fold"))


def _table(workers: Sequence[WorkerView]) -> Table:
    table = Table("name", "device", "seen", "study", "trial", "fold", "", box=None, pad_edge=False)
    for worker in workers:
        table.add_row(
            worker.name,
            worker.device,
            f"{worker.seconds_since_seen:.0f} s ago",
            worker.study or "-",
            "-" if worker.trial is None else str(worker.trial),
            "-" if worker.fold is None else str(worker.fold + 1),
            "draining" if worker.draining else "",
        )
    return table
