"""`foldwise export` and `foldwise predict`: what to do with a model of the catalogue."""

from __future__ import annotations

import csv
import json as json_library
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.local.state import StateFolder, default_state
from services.errors import EXIT_USAGE, FoldwiseError, InvalidInput

if TYPE_CHECKING:
    from worker.inference.predict import Prediction, Window

Model = Annotated[
    str, typer.Argument(help="Id of a model of the catalogue, or its beginning if only one has it.")
]
Models = Annotated[Path | None, typer.Option(envvar="FOLDWISE_MODELS", help="Folder of the model catalogue.")]
State = Annotated[Path | None, typer.Option(help="State folder; the default is in the user's data folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs.")]


def export(
    model: Model,
    onnx: Annotated[Path, typer.Option(help="File to write.")],
    models: Models = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Write a model as ONNX and check it against torch."""
    from cli.models.export_onnx import export_onnx

    root = _root(models, state)
    done = export_onnx(root, _find(root, model), onnx)
    if json:
        print(json_library.dumps({**vars(done), "file": str(done.file)}))
        return
    print(f"{done.file}: {done.model} as ONNX; its logits differ from torch's by {done.largest_difference:.1g}")


def predict(
    model: Model,
    video: Annotated[list[Path], typer.Argument(help="Videos with a face, or folders of their images.")],
    stride: Annotated[int, typer.Option(min=1, help="Frames from one window to the next.")] = 5,
    csv_: Annotated[Path | None, typer.Option("--csv", help="Also write the table to this file.")] = None,
    annotated: Annotated[
        Path | None, typer.Option("--video", help="Also write the video with boxes and labels, as MP4.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda:0, ...; default: a GPU if there is one.")
    ] = None,
    models: Models = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Name the emotion of the face in videos over time. Exit code 2 if one of them cannot be labelled."""
    from worker.inference.annotated_video import write_annotated
    from worker.inference.predict import Predictor
    from worker.training.device import choose_device
    from worker.training.pretrained import open_model

    if annotated is not None and len(video) > 1:
        raise InvalidInput(f"--video {annotated} is one file, and there are {len(video)} videos; give one")
    root = _root(models, state)
    card, network = open_model(root, _find(root, model))
    predictor = Predictor(card, network, choose_device(device))
    console = Console(stderr=json)
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
        if not json:
            console.print(_table(found))
        if annotated is not None:
            write_annotated(path, found, annotated)
            console.print(f"annotated video: {annotated}", highlight=False, soft_wrap=True)
    if csv_ is not None:
        _write_csv(csv_, card.classes, done)
    if json:
        said: list[dict[str, Any]] = [
            {
                "video": each.video,
                "model": each.model,
                "frames": each.frames,
                "windows": [vars(window) for window in each.windows],
            }
            for each in done
        ]
        said += [{"video": name, "model": card.id, "error": message} for name, message in failed.items()]
        print(json_library.dumps(said))
    raise typer.Exit(EXIT_USAGE if failed else 0)


def _root(models: Path | None, state: Path | None) -> Path:
    return models or StateFolder(state or default_state()).models


def _find(root: Path, wanted: str) -> str:
    """The id that is meant by its beginning."""
    from services.model_catalogue import find_model, list_models

    fitting = [card.id for card in list_models(root) if card.id.startswith(wanted)]
    return fitting[0] if len(fitting) == 1 else find_model(root, wanted).id


def _table(found: Prediction) -> Table:
    table = Table("seconds", "frames", "label", "", "next", title=found.video, title_justify="left")
    for window in found.windows:
        table.add_row(
            f"{window.start:.2f} to {window.end:.2f}",
            f"{window.first_frame} to {window.last_frame}",
            *_cells(window),
        )
    return table


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
            for window in found.windows:
                shares = window.probabilities or {}
                row = [getattr(window, column) for column in columns[1:-1]]
                table.writerow(
                    [found.video, *row, window.label or "", *(shares.get(name, "") for name in classes)]
                )
