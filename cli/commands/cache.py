"""`foldwise preprocess, inspect, verify`: making and checking clip caches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from cli.options import CacheRoot, Json, console, state_folder
from services.clip_cache import MANIFEST, cache_folder, find_cache, subjects_words
from services.errors import CacheMismatch, FoldwiseError, InvalidInput
from services.presets import clip_preset

if TYPE_CHECKING:
    # OpenCV takes a while to load.
    from preprocessing.inspection import Confidence, Inspection
    from preprocessing.job import Outcome

app = typer.Typer()

Choice = TypeVar("Choice", bound=StrEnum)

Cache = Annotated[str, typer.Argument(help="Clip cache: a folder, DATASET, or DATASET/FINGERPRINT.")]


def _use_preset(context: typer.Context, name: str | None) -> str | None:
    if name is not None:
        context.default_map = {**clip_preset(name), **(context.default_map or {})}
    return name


def _use_settings(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        context.default_map = {**(context.default_map or {}), **_read_settings(path, context)}
    return path


@app.command(epilog="Example: foldwise preprocess --dataset ckplus --root /data/CK+")
def preprocess(
    dataset: Annotated[
        str,
        typer.Option(
            envvar="FOLDWISE_DATASET",
            help="Folder layout: ckplus, crema-d, oulu-casia, ravdess, video-folder, or the name of an "
            "installed reader; --preset can give it.",
        ),
    ],
    root: Annotated[Path, typer.Option(envvar="FOLDWISE_DATASET_ROOT", help="Folder of the dataset.")],
    reader_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            envvar="FOLDWISE_READER_SETTINGS",
            metavar="KEY=VALUE",
            help="Reader setting, repeatable (crema-d: level, classes, end, colour; oulu-casia: modality, "
            "lighting; ravdess: channel, intensity, classes, end, colour; video-folder: manifest, name, "
            "colour).",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            envvar="FOLDWISE_PRESET",
            help="Study preset whose dataset and clip settings to use, such as ckplus-loso (the paper's).",
            callback=_use_preset,
            is_eager=True,
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            envvar="FOLDWISE_SETTINGS",
            help="YAML or JSON file with values for these options, named without the leading dashes.",
            callback=_use_settings,
            is_eager=True,
        ),
    ] = None,
    cache_root: CacheRoot = None,
    frames: Annotated[int, typer.Option(min=1, envvar="FOLDWISE_FRAMES", help="Frames per clip.")] = 10,
    frame_size: Annotated[
        int,
        typer.Option(
            min=16, envvar="FOLDWISE_FRAME_SIZE", help="Width and height of a cropped face, in pixels."
        ),
    ] = 112,
    detector: Annotated[
        str,
        typer.Option(envvar="FOLDWISE_DETECTOR", help="Face detector: yunet, or res10 (the paper's)."),
    ] = "yunet",
    box: Annotated[
        str,
        typer.Option(
            envvar="FOLDWISE_BOX",
            help="Crop with each frame's own box (frame) or the clip's median box (median).",
        ),
    ] = "frame",
    min_face_share: Annotated[
        float,
        typer.Option(
            "--min-face-share",
            "--least-faces",
            envvar="FOLDWISE_LEAST_FACES",
            help="Minimum share of frames with a detected face (0 to 1); below it a clip has too few faces.",
        ),
    ] = 0.5,
    few_faces: Annotated[
        str,
        typer.Option(
            envvar="FOLDWISE_FEW_FACES", help="What to do with clips that have too few faces: drop or keep."
        ),
    ] = "drop",
    processes: Annotated[
        int, typer.Option(min=1, envvar="FOLDWISE_PROCESSES", help="Number of parallel processes.")
    ] = os.cpu_count() or 1,
    register: Annotated[
        str | None,
        typer.Option(
            envvar="FOLDWISE_REGISTER",
            help="URL of a coordinator that must list the finished cache; FOLDWISE_TOKEN holds its token.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Turn a dataset into a clip cache; run it again to continue after an interruption."""
    from cli.terminal.progress import preprocessing_progress
    from preprocessing.clips import BoxChoice, ClipSettings, FewFaces
    from preprocessing.datasets.registry import read_settings
    from preprocessing.job import preprocess as run
    from services.secrets import read_secret

    if register is not None:
        # A missing token should be found before hours of work, not after.
        read_secret("FOLDWISE_TOKEN", what=f"the token for {register}")
    output = console(json)
    with preprocessing_progress(output) as report:
        outcome = run(
            dataset,
            root,
            cache_root or state_folder(None).caches,
            settings=ClipSettings(
                frames=frames,
                frame_size=frame_size,
                detector=detector,
                box=_one_of(BoxChoice, box, "box"),
                min_face_share=min_face_share,
                few_faces=_one_of(FewFaces, few_faces, "few_faces"),
            ),
            processes=processes,
            reader_settings=read_settings(reader_settings or []),
            report=report,
        )
    _say_outcome(outcome, output)
    if register is not None:
        _register(register, outcome, output)
    if json:
        print(outcome.manifest.model_dump_json())


@app.command(epilog="Example: foldwise inspect ckplus --sheet sheet.png")
def inspect(
    cache: Cache,
    cache_root: CacheRoot = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Draw some clips of each class, and all flagged clips, into this PNG file."),
    ] = None,
    clips_per_class: Annotated[
        int, typer.Option(min=0, help="Number of clips without a flag to draw, per class.")
    ] = 4,
    json: Json = False,
) -> None:
    """Show a clip cache: classes, subjects, folds, confidence of the face detector, checks."""
    from preprocessing.inspection import inspect_cache
    from services.clip_cache import open_cache

    output = console(json)
    opened = open_cache(_folder(cache, cache_root))
    found = inspect_cache(opened)
    _say_inspection(found, opened.manifest.skipped, output)
    if sheet is not None:
        from cli.terminal.contact_sheet import save_contact_sheet

        save_contact_sheet(opened, sheet, clips_per_class=clips_per_class)
        output.print(f"contact sheet in {sheet}", highlight=False, soft_wrap=True)
    if json:
        print(found.model_dump_json())


@app.command(epilog="Example: foldwise verify ckplus")
def verify(cache: Cache, cache_root: CacheRoot = None, json: Json = False) -> None:
    """Hash a clip cache again and run all checks. Exit code 64 if it is damaged."""
    from preprocessing.inspection import check_cache
    from services.clip_cache import open_cache

    output = console(json)
    opened = open_cache(_folder(cache, cache_root))
    output.print(f"{opened.folder}", highlight=False, soft_wrap=True)
    output.print(f"  ok: {len(opened.manifest.files)} files have the SHA-256 that the manifest records")
    checks = check_cache(opened)
    for line in (line for check in checks for line in check.lines()):
        output.print(f"  {line}", highlight=False, soft_wrap=True)
    if json:
        print("[" + ",".join(check.model_dump_json() for check in checks) + "]")
    broken = [check.name for check in checks if check.broken and check.problems]
    if broken:
        raise CacheMismatch(
            f"the clip cache {opened.folder} fails: {'; '.join(broken)}; delete it and preprocess again"
        )


def _one_of(choices: type[Choice], value: str, field: str) -> Choice:
    try:
        return choices(value)
    except ValueError:
        raise InvalidInput(f"{field} is {value!r}; use one of: {', '.join(choices)}.", field=field) from None


def _read_settings(path: Path, context: typer.Context) -> dict[str, Any]:
    from cli.spec_files import read_file

    content = read_file(path, "settings")
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} holds no mapping; write the options as NAME: VALUE", field="settings")
    names = {
        spelling.lstrip("-").replace("-", "_"): parameter.name
        for parameter in context.command.params
        if parameter.name is not None and parameter.name not in {"preset", "settings", "json", "help"}
        for spelling in (parameter.name, *parameter.opts)
    }
    values = {}
    for key, value in content.items():
        name = names.get(str(key).replace("-", "_"))
        if name is None:
            raise InvalidInput(
                f"{path} sets {key!r}, which is not an option; use one of: {', '.join(sorted(names))}",
                field=str(key),
            )
        values[name] = value
    # One text may hold several settings, as in the environment variable.
    if isinstance(several := values.get("reader_settings"), str):
        values["reader_settings"] = several.split()
    return values


def _say_outcome(outcome: Outcome, output: Console) -> None:
    from cli.terminal.tables import skipped_lines

    def say(text: str) -> None:
        output.print(text, highlight=False, soft_wrap=True)

    manifest = outcome.manifest
    for warning in manifest.warnings:
        say(f"warning: {warning}")
    for clip_id, flags in outcome.flagged.items():
        say(f"flagged: {clip_id}: {'; '.join(flags)}")
    for clip_id, reason in manifest.dropped.items():
        say(f"dropped: {clip_id}: {reason}")
    for pair in outcome.near_copies:
        say(f"leak: {pair}")
    for line in skipped_lines(manifest.skipped):
        say(line)
    counts = ", ".join(f"{name} {count}" for name, count in manifest.class_counts.items())
    say(f"{manifest.clips} clips of {subjects_words(manifest.subjects)} ({counts})")
    say(
        f"{outcome.made} made now, {len(outcome.flagged)} flagged, {len(manifest.dropped)} dropped; "
        f"leaks between subjects: {len(outcome.near_copies)}"
    )
    say(f"{outcome.folder}")


def _register(url: str, outcome: Outcome, output: Console) -> None:
    """Check that the coordinator lists the cache; it lists every cache in its cache root."""
    from cli.reach import reach

    with reach(url, None) as client:
        seen = {(there.dataset, there.fingerprint) for there in client.datasets()}
    manifest = outcome.manifest
    if (manifest.dataset, manifest.fingerprint) not in seen:
        raise FoldwiseError(
            f"the cache is complete, but the coordinator at {url} does not list it; give the coordinator the "
            f"volume that holds {outcome.folder} as its --cache-root",
            field="register",
        )
    output.print(
        f"the coordinator at {url} lists {manifest.dataset}/{manifest.fingerprint[:12]}",
        highlight=False,
        soft_wrap=True,
    )


def _folder(cache: str, cache_root: Path | None) -> Path:
    path = Path(cache).expanduser()
    if (path / MANIFEST).is_file():
        return path.absolute()
    if path.is_absolute():
        raise CacheMismatch(f"{path} is no finished clip cache: it has no {MANIFEST}", field="cache")
    root = cache_root or state_folder(None).caches
    manifest = find_cache(root, cache)
    return cache_folder(root, manifest.dataset, manifest.fingerprint)


def _say_inspection(found: Inspection, skipped: Mapping[str, str], output: Console) -> None:
    from cli.terminal.tables import skipped_lines

    def say(text: str) -> None:
        output.print(text, highlight=False, soft_wrap=True)

    say(f"{found.dataset}/{found.fingerprint[:12]}  {found.folder}")
    kind = "gray" if found.channels == 1 else "colour"
    say(
        f"  {found.clips} clips of {subjects_words(found.subjects)}, {found.frames} frames of "
        f"{found.frame_size} x {found.frame_size}, {kind}, faces by {found.detector}"
    )
    table = Table(
        "class", "clips", "subjects", "flagged", "frames with face", "confidence", box=None, pad_edge=False
    )
    for one in found.classes:
        table.add_row(
            one.label,
            str(one.clips),
            str(one.subjects),
            str(one.flagged),
            f"{one.confidence.frames_with_face:.1%}",
            _confidence(one.confidence),
        )
    table.add_row(
        "all",
        str(found.clips),
        str(found.subjects),
        str(len(found.flagged)),
        f"{found.confidence.frames_with_face:.1%}",
        _confidence(found.confidence),
    )
    output.print(table)
    for folds in found.folds:
        say(
            f"  {folds.protocol}: {folds.folds} folds of {folds.least_clips} to {folds.most_clips} test "
            f"clips (median {folds.median_clips:g})"
        )
    if not found.folds:
        say("  too few subjects for a cross-validation")
    if found.repeated:
        say(f"  {found.repeated} clips are too short and repeat their last frame")
    for warning in found.warnings:
        say(f"  warning: {warning}")
    for clip_id, flags in found.flagged.items():
        say(f"  flagged: {clip_id}: {'; '.join(flags)}")
    for clip_id, reason in found.dropped.items():
        say(f"  dropped: {clip_id}: {reason}")
    for line in skipped_lines(skipped):
        say(f"  {line}")
    for check in found.checks:
        for line in check.lines():
            say(f"  {line}")


def _confidence(confidence: Confidence) -> str:
    if confidence.median is None:
        return "-"
    return f"{confidence.median:.2f} (least {confidence.least:.2f})"
