"""`foldwise plan`, as a person calls it."""

from __future__ import annotations

import json as json_library
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli.local.state import StateFolder, default_state
from cli.options import Json, State, Url
from cli.reach import reach
from cli.spec_files import build_spec


def plan(
    spec: Annotated[Path | None, typer.Argument(help="A study in YAML or JSON.")] = None,
    preset: Annotated[str | None, typer.Option(help="Or a preset; a SPEC beside it wins.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, as in `study create`.")] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Clip cache to plan on; default: the SPEC's, or the published set of a preset."),
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option(help="GPU to forecast for, such as H100; give it once for each.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this device for a minute, instead of assuming.")
    ] = False,
    calibrate_from: Annotated[
        str | None,
        typer.Option(metavar="STUDY", help="Or take the speed at which workers ran the folds of this study."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="To calibrate: cpu, cuda:0, ...")] = None,
    cache_root: Annotated[Path | None, typer.Option(envvar="FOLDWISE_CACHE_ROOT")] = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Say what a study will cost before anything runs: folds, clip passes, operations, memory, hours."""
    from cli.forecast.calibration import measure_here, measured_by_workers
    from cli.forecast.dataset_shape import shape_of
    from cli.forecast.plan import make_plan, on_devices
    from cli.forecast.tables import configurations_table, devices_table, plan_lines

    wanted = build_spec(preset=preset, spec=spec, space=None, name=None, cache=cache, settings=set_ or [])
    folder = StateFolder(state or default_state())
    shape = shape_of(wanted, preset=preset, cache=cache, cache_root=cache_root or folder.caches)
    found = make_plan(wanted, shape)
    measured = None
    if calibrate_from is not None:
        with reach(url, state) as client:
            measured = measured_by_workers(client, calibrate_from)
    elif calibrate:
        measured = measure_here(wanted, shape, found, device=device)
    found = on_devices(found, wanted, gpu or [], measured)
    if json:
        print(json_library.dumps(asdict(found)))
        return
    console = Console()
    for line in plan_lines(found, wanted):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(configurations_table(found))
    console.print(devices_table(found))
    console.print(f"counted: {found.convention}", highlight=False, soft_wrap=True)
