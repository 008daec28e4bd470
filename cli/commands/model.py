"""`foldwise train-final, pretrain, predict, export`: models of the catalogue, trained and used."""

from __future__ import annotations

import csv
import json as json_library
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli.options import (
    Cache,
    CacheRoot,
    Device,
    Json,
    Models,
    Preset,
    Settings,
    Spec,
    State,
    Study,
    Url,
    console,
    state_folder,
)
from cli.reach import reach
from cli.spec_files import build_spec
from services.clip_cache import find_cache
from services.errors import EXIT_USAGE, FoldwiseError, InvalidInput

if TYPE_CHECKING:
    # torch and OpenCV take seconds to load.
    from worker.inference.predict import Prediction, Window

app = typer.Typer()

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Id of a model in the catalogue, or a unique beginning of one.")
]


@app.command("train-final", epilog="Example: foldwise train-final first")
def train_final(
    study: Study,
    trial: Annotated[
        int | None, typer.Option(min=0, help="Number of a complete trial (default: the best one).")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Beginning of the model's id (default: STUDY-final).")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs to train for (default: as many as the trial's folds).")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until the model is in the catalogue.")
    ] = True,
    url: Url = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Train a study's best configuration on all its clips, on a worker, and keep the model."""
    from pydantic import ValidationError

    from cli.models.train_final import chance_warning, start_final, wait_for_model
    from services.contracts import TrainFinal
    from services.search_space import first_problem

    try:
        wanted = TrainFinal(name=name, trial=trial, epochs=epochs)
    except ValidationError as error:
        raise InvalidInput(first_problem(error)) from error
    with reach(url, state) as client:
        final = start_final(client, study, wanted)
        before = final.spec.cross_validated
        if before is not None:
            console(json).print(
                f"trial {before.trial} of {study}: {before.accuracy:.2%} cross-validated; now training on "
                f"all {final.clips} clips for {final.spec.training.epochs} epochs",
                highlight=False,
                soft_wrap=True,
            )
            if (warning := chance_warning(before, len(final.classes))) is not None:
                console(json).print(f"warning: {warning}", highlight=False, soft_wrap=True)
        if not wait:
            print(final.model_dump_json() if json else f"follow it with: foldwise study watch {final.name}")
            return
        model = wait_for_model(client, final.name, console(json))
    console(json).print(f"model {model.id} is in the catalogue", highlight=False)
    if json:
        print(model.model_dump_json())


@app.command(epilog="Example: foldwise pretrain --name oulu --preset oulu-10fold --parameter temporal_size=3")
def pretrain(
    name: Annotated[str, typer.Option(help="Beginning of the model's id.")],
    preset: Preset = None,
    spec: Spec = None,
    cache: Cache = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Hyper-parameter of the paper's Table 1 (default: the paper's best on CK+); repeatable.",
        ),
    ] = None,
    set_: Settings = None,
    cache_root: CacheRoot = None,
    models: Models = None,
    device: Device = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Train one configuration on all clips of a dataset; studies start from it (training.pretrained)."""
    from cli.models.pretrain import pretrain as run
    from cli.models.pretrain import read_parameters
    from cli.terminal.progress import training_progress

    folder = state_folder(state)
    caches = cache_root or folder.caches
    wanted = build_spec(
        preset=preset,
        spec=spec,
        space=None,
        name=name,
        cache=cache,
        settings=set_ or [],
        clips=lambda wanted: find_cache(caches, wanted),
    )
    with training_progress(console(json), wanted.training.epochs) as on_step:
        card = run(
            wanted,
            read_parameters(parameter or []),
            name,
            cache_root=caches,
            models_root=models or folder.models,
            device=device,
            on_step=on_step,
        )
    console(json).print(f"model {card.id}, trained on {card.clips} clips of {card.dataset}", highlight=False)
    console(json).print(f"start a study from it with: --set training.pretrained={card.id}", highlight=False)
    if json:
        print(card.model_dump_json())


@app.command(epilog="Example: foldwise export first-final --onnx first.onnx")
def export(
    model: Model,
    onnx: Annotated[Path, typer.Option(help="ONNX file to write.")],
    models: Models = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Write a model as an ONNX file and compare its outputs with torch's."""
    from cli.models.export_onnx import export_onnx
    from services.model_catalogue import find_model

    root = _root(models, state)
    done = export_onnx(root, find_model(root, model, by_beginning=True).id, onnx)
    if json:
        print(json_library.dumps({**vars(done), "file": str(done.file)}))
        return
    print(f"{done.file}: {done.model} as ONNX; its logits differ from torch's by {done.largest_difference:.1g}")


@app.command(epilog="Example: foldwise predict first-final a.mp4 --video labelled.mp4")
def predict(
    model: Model,
    video: Annotated[
        list[Path], typer.Argument(metavar="VIDEO", help="Videos of a face, or folders of frames as images.")
    ],
    stride: Annotated[
        int,
        typer.Option(
            min=1, help="Frames between the starts of two windows (only for models of the last frames)."
        ),
    ] = 5,
    csv_: Annotated[Path | None, typer.Option("--csv", help="Also write the table to this CSV file.")] = None,
    annotated: Annotated[
        Path | None, typer.Option("--video", help="Also write the video with face boxes and labels, as MP4.")
    ] = None,
    device: Device = None,
    models: Models = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Label the emotion of the face in videos, over time or as a whole. Exit code 2 if a video has no label."""
    from services.model_card import accuracy_text
    from worker.inference.annotated_video import write_annotated
    from worker.inference.predict import load_predictor

    if annotated is not None and len(video) > 1:
        raise InvalidInput(f"--video {annotated} names one file for {len(video)} videos; give one video")
    predictor = load_predictor(_root(models, state), model, device)
    output = console(json)
    output.print(accuracy_text(predictor.card), highlight=False, soft_wrap=True)
    done: list[Prediction] = []
    failed: dict[str, str] = {}
    for path in video:
        try:
            found = predictor.predict(path, stride=stride)
        except FoldwiseError as error:
            print(f"foldwise: {error.message}", file=sys.stderr)
            failed[str(path)] = error.message
            continue
        done.append(found)
        for flag in found.flags:
            output.print(f"flagged: {flag}", highlight=False, soft_wrap=True)
        if not json:
            output.print(_table(found))
        if annotated is not None:
            write_annotated(path, found, annotated)
            output.print(f"annotated video: {annotated}", highlight=False, soft_wrap=True)
    if csv_ is not None:
        _write_csv(csv_, predictor.card.classes, done)
    if json:
        said: list[dict[str, Any]] = [
            {
                "video": each.video,
                "model": each.model,
                "frames": each.frames,
                "flags": each.flags,
                "windows": [vars(window) for window in each.windows],
                "whole": None if each.whole is None else vars(each.whole),
            }
            for each in done
        ]
        said += [
            {"video": name, "model": predictor.card.id, "error": message} for name, message in failed.items()
        ]
        print(json_library.dumps(said))
    raise typer.Exit(EXIT_USAGE if failed else 0)


def _root(models: Path | None, state: Path | None) -> Path:
    return models or state_folder(state).models


def _table(found: Prediction) -> Table:
    table = Table("seconds", "frames", "label", "", "next", title=found.video, title_justify="left")
    for window in found.windows:
        table.add_row(*_times(window), *_cells(window))
    if found.whole is not None and len(found.windows) > 1:
        table.add_section()
        table.add_row(f"mean of {len(found.windows)}", _times(found.whole)[1], *_cells(found.whole))
    return table


def _times(window: Window) -> tuple[str, str]:
    return (
        f"{window.start:.2f} to {window.end:.2f}",
        f"{window.first_frame} to {window.last_frame}",
    )


def _cells(window: Window) -> tuple[str, str, str]:
    if window.probabilities is None:
        return "no face", "", ""
    first, *others = sorted(window.probabilities.items(), key=lambda pair: -pair[1])
    following = ", ".join(f"{name} {share:.0%}" for name, share in others[:2])
    return first[0], f"{first[1]:.0%}", following


def _write_csv(file: Path, classes: Sequence[str], done: Sequence[Prediction]) -> None:
    columns = ("video", "first_frame", "last_frame", "start", "end", "frames_with_face", "label")
    with file.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow((*columns, *classes))
        for found in done:
            for window in found.windows if found.whole is None else [found.whole]:
                shares = window.probabilities or {}
                row = [getattr(window, column) for column in columns[1:-1]]
                table.writerow(
                    [found.video, *row, window.label or "", *(shares.get(name, "") for name in classes)]
                )
