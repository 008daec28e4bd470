"""`foldwise plan`: what a study will cost, before anything runs."""

from __future__ import annotations

import json as json_library
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.options import CacheRoot, Json, Preset, Settings, State, Url, console, state_folder
from cli.reach import reach
from cli.spec_files import build_spec
from services.clip_cache import find_cache

app = typer.Typer()


@app.command(epilog="Example: foldwise plan --preset ckplus-loso --gpu H200")
def plan(
    spec: Annotated[
        Path | None,
        typer.Argument(metavar="SPEC", help="Study in YAML or JSON; its fields replace those of the preset."),
    ] = None,
    preset: Preset = None,
    set_: Settings = None,
    cache: Annotated[
        str | None,
        typer.Option(
            help="Clip cache to plan for (default: the study's, or the published size of the preset's dataset)."
        ),
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(help="GPU or MIG slice to forecast for, such as H100 or 'H200 MIG 1g.18gb'; repeatable."),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the speed of this device, which takes a minute.")
    ] = False,
    calibrate_from: Annotated[
        str | None,
        typer.Option(metavar="STUDY", help="Use the speed at which workers ran the folds of this study."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Torch device to calibrate, such as cpu or cuda:0.")
    ] = None,
    cache_root: CacheRoot = None,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Forecast the cost of a study before it runs: folds, clip passes, operations, memory, hours."""
    from cli.forecast.calibration import measure_device, speed_of_workers
    from cli.forecast.dataset_shape import shape_of
    from cli.forecast.forecast import make_forecast, with_devices
    from cli.forecast.tables import configurations_table, devices_table, forecast_lines

    caches = cache_root or state_folder(state).caches
    wanted = build_spec(
        preset=preset,
        spec=spec,
        space=None,
        name=None,
        cache=cache,
        settings=set_ or [],
        clips=lambda name: find_cache(caches, name),
    )
    shape = shape_of(wanted, preset=preset, cache=cache, cache_root=caches)
    forecast = make_forecast(wanted, shape)
    measured = None
    if calibrate_from is not None:
        with reach(url, state) as client:
            measured = speed_of_workers(client, calibrate_from)
    elif calibrate:
        measured = measure_device(wanted, shape, forecast, device=device)
    forecast = with_devices(forecast, wanted, gpu or [], measured)
    if json:
        print(json_library.dumps(asdict(forecast)))
        return
    output = console(json)
    for line in forecast_lines(forecast, wanted):
        output.print(line, highlight=False, soft_wrap=True)
    output.print(configurations_table(forecast))
    output.print(devices_table(forecast))
    output.print(f"how operations are counted: {forecast.convention}", highlight=False, soft_wrap=True)
