"""`foldwise demo, synth, doctor, backup, restore`: trying foldwise out; health and backups of one machine."""

from __future__ import annotations

import json as json_library
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.cluster_access import chosen_context
from cli.local.state import StateFolder
from cli.options import Database, Devices, Json, State, Url, console, state_folder
from cli.reach import reach
from services.errors import EXIT_FAILURE, FoldwiseError

app = typer.Typer()


@app.command(epilog="Example: foldwise demo --devices cpu --workers 2")
def demo(
    state: Annotated[
        Path | None,
        typer.Option(help="State folder of the demo (default: the folder demo in the user's data folder)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Number of workers (default: one per GPU, or 2 on the CPU)."),
    ] = None,
    devices: Devices = None,
    new: Annotated[
        bool, typer.Option("--new", help="Start another study instead of continuing the last one.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a whole search with synthetic faces on this machine: about two minutes on two cores."""
    from cli.local.demo import demo_state, run_demo
    from cli.local.devices import devices_of_workers

    output = console(json)

    def print_line(text: str) -> None:
        output.print(text, highlight=False, soft_wrap=True)

    chosen = devices_of_workers(devices, workers, notify=print_line, workers_on_cpu=2)
    result = run_demo(StateFolder(state or demo_state()), devices=chosen, new=new, console=output)
    if json:
        print(json_library.dumps(asdict(result)))


@app.command(epilog="Example: foldwise synth faces --subjects 12 --difficulty 0.5 --layout oulu-casia")
def synth(
    folder: Annotated[Path, typer.Argument(help="Folder to write the dataset to.")],
    layout: Annotated[str, typer.Option(help="Folder layout: ckplus or oulu-casia.")] = "ckplus",
    subjects: Annotated[int, typer.Option(help="Number of subjects.")] = 12,
    classes: Annotated[
        str | None, typer.Option(help="Emotions to draw, such as anger,happy,fear (default: the layout's).")
    ] = None,
    clips_per_class: Annotated[
        int, typer.Option(help="Sequences per subject and emotion; oulu-casia allows one.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed; the same seed draws the same faces.")] = 0,
    difficulty: Annotated[float, typer.Option(help="Difficulty, from 0 (easy) to 1 (hard).")] = 0.5,
    fade: Annotated[
        float,
        typer.Option(
            help="Fading of the expression in the last frame: 0 (none, at its peak) to 1 (a neutral face)."
        ),
    ] = 0.0,
    colour: Annotated[
        bool | None,
        typer.Option(
            "--colour/--gray", help="Draw in colour or gray (default: gray for ckplus, colour for oulu-casia)."
        ),
    ] = None,
) -> None:
    """Write a dataset of synthetic moving faces in the folder layout of a real one."""
    from cli.terminal.progress import writing_progress
    from preprocessing.datasets.synthetic import write_synthetic_tree

    with writing_progress(console(False)) as progress:
        write_synthetic_tree(
            folder,
            layout=layout,
            subjects=subjects,
            classes=None if classes is None else [name.strip() for name in classes.split(",")],
            clips_per_class=clips_per_class,
            seed=seed,
            difficulty=difficulty,
            fade=fade,
            colour=colour,
            progress=progress,
        )
    print(f"{folder} now holds a synthetic dataset in the layout {layout}; next:")
    print(f"foldwise preprocess --dataset {layout} --root {folder}")


@app.command(epilog="Example: foldwise doctor --url http://127.0.0.1:8080")
def doctor(
    url: Url = None,
    state: State = None,
    cache_root: Annotated[
        Path | None,
        typer.Option(envvar="FOLDWISE_CACHE_ROOT", help="Folder of clip caches to check (default: none)."),
    ] = None,
    database_url: Database = None,
    json: Json = False,
) -> None:
    """Check this machine, a coordinator and a cluster, and say how to fix each problem. Exit code 1 if any."""
    from cli.doctor.machine import Finding, check_cache, check_database, check_machine, check_service
    from cli.terminal.tables import finding_lines
    from services.secrets import is_given, read_database_url

    findings = list(check_machine())
    if cache_root is not None:
        findings.append(check_cache(cache_root))
    if database_url is not None or is_given("FOLDWISE_DATABASE_URL"):
        findings += check_database(read_database_url(database_url))
    context = chosen_context.get()
    if context is not None:
        from cli.doctor.cluster import check_cluster

        findings += check_cluster(context)
    try:
        if context or url or state or state_folder(None).service() is not None:
            with reach(url, state) as client:
                findings += check_service(client.connection)
    except FoldwiseError as error:
        findings.append(Finding(what="service", good=False, found=error.message))
    for finding in findings:
        for line in finding_lines(finding):
            console(json).print(line, highlight=False, soft_wrap=True)
    if json:
        print(json_library.dumps([finding.as_json() for finding in findings]))
    raise typer.Exit(0 if all(finding.good for finding in findings) else EXIT_FAILURE)


@app.command(epilog="Example: foldwise backup foldwise-monday.tar")
def backup(
    file: Annotated[Path, typer.Argument(help="File to write; only you can read it, because it has tokens.")],
    state: State = None,
) -> None:
    """Write the database, the models and the tokens of `foldwise up` to a file, while it runs or not."""
    from cli.local.backup import back_up

    manifest = back_up(state_folder(state), file)
    size = sum(stored.bytes for stored in manifest.files.values())
    print(f"{file}: {size / 2**20:.1f} MiB; restore it with: foldwise restore {file} --state FOLDER")
    if manifest.caches:
        print(f"clip caches are not in it, because they can be made again: {', '.join(manifest.caches)}")


@app.command(epilog="Example: foldwise restore foldwise-monday.tar --state ~/restored")
def restore(
    file: Annotated[Path, typer.Argument(help="File that `foldwise backup` wrote.")],
    state: State = None,
) -> None:
    """Restore a backup into a state folder without data; the next `foldwise up` continues its studies."""
    from cli.local.backup import restore as restore_backup

    folder = state_folder(state)
    manifest = restore_backup(folder, file)
    option = "" if state is None else f" --state {folder.folder}"
    print(
        f"{folder.folder} is as it was on {manifest.created_at:%Y-%m-%d %H:%M} UTC; next: foldwise up{option}"
    )
    if manifest.caches:
        print(f"running studies need their clip caches in {folder.caches}: {', '.join(manifest.caches)}")
