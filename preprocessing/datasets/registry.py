"""The readers by name: foldwise's own, and those of installed packages (entry points)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from preprocessing.datasets import ckplus, crema_d, oulu_casia, ravdess, video_folder
from preprocessing.datasets.reader import Dataset, FrameSequence, split_warnings
from services.errors import FoldwiseError, InvalidInput
from services.official_splits import MAX_FOLD_NAME_CHARACTERS

ENTRY_POINT_GROUP = "foldwise.datasets"
"""The entry point group in which a package registers its readers."""

Reader = Callable[..., Dataset]
"""A function that takes the dataset's folder; its keyword-only arguments are its settings, all text."""

BUILT_IN: Mapping[str, Reader] = {
    ckplus.NAME: ckplus.read_ckplus,
    crema_d.NAME: crema_d.read_crema_d,
    oulu_casia.NAME: oulu_casia.read_oulu_casia,
    ravdess.NAME: ravdess.read_ravdess,
    video_folder.NAME: video_folder.read_video_folder,
}

_DATASET_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


def dataset_names() -> tuple[str, ...]:
    """All names that `read_dataset` knows, in alphabetical order."""
    return tuple(sorted({*BUILT_IN, *_plugins()}))


def read_dataset(name: str, root: Path, settings: Mapping[str, str] | None = None) -> Dataset:
    """Read the dataset under `root`.

    Args:
        name: of the reader; hyphens and underscores are equivalent.
        root: the dataset's folder.
        settings: values for the reader's keyword-only arguments.

    Raises:
        InvalidInput: the name or a setting is unknown, or two packages register a reader of this name.
        FoldwiseError: a package's reader cannot be loaded, or returns an invalid `Dataset`.
        Exception: whatever the reader raises.
    """
    reader = _load_reader(name.replace("_", "-"))
    wanted = dict(settings or {})
    known = _setting_names(reader)
    for key in wanted:
        if key not in known:
            advice = f"its settings are: {', '.join(known)}" if known else "it has no settings"
            raise InvalidInput(f"setting {key!r} is not known to the reader of {name}; {advice}.", field=key)
    found = reader(root, **wanted)
    _check_dataset(found, name)
    if any(not sequence.subject or sequence.fold or sequence.split for sequence in found.sequences):
        return replace(found, warnings=(*found.warnings, *split_warnings(found.sequences)))
    return found


def read_settings(texts: Iterable[str]) -> dict[str, str]:
    """Parse a reader's settings from texts like `lighting=Weak`.

    Raises:
        InvalidInput: a text is no KEY=VALUE, or a setting is given twice.
    """
    settings: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise InvalidInput(f"setting {text!r} is no KEY=VALUE; write it like lighting=Weak.", field="set")
        if key in settings:
            raise InvalidInput(f"setting {key!r} is given twice; give it once.", field=key)
        settings[key] = value
    return settings


def _load_reader(name: str) -> Reader:
    if name in BUILT_IN:
        return BUILT_IN[name]
    points = _plugins().get(name, [])
    if not points:
        raise InvalidInput(
            f"dataset is {name!r}, which is not known; use one of: {', '.join(dataset_names())}.",
            field="dataset",
        )
    if len(points) > 1:
        packages = ", ".join(sorted(_package_name(point) for point in points))
        raise InvalidInput(
            f"dataset is {name!r}, for which several packages have a reader ({packages}); "
            "uninstall all but one.",
            field="dataset",
        )
    try:
        reader: Reader = points[0].load()
    except Exception as error:
        raise FoldwiseError(
            f"the reader of {name} from {_package_name(points[0])} ({points[0].value}) cannot be loaded: "
            f"{error!r}"
        ) from error
    return reader


def _plugins() -> dict[str, list[EntryPoint]]:
    """Entry points of installed packages by reader name; foldwise's own readers take precedence."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        found.setdefault(point.name.replace("_", "-"), []).append(point)
    return found


def _package_name(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "a package"


def _setting_names(reader: Reader) -> tuple[str, ...]:
    parameters = inspect.signature(reader).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def _check_dataset(found: object, name: str) -> None:
    """Raise `FoldwiseError` if a package's reader returned what the preprocessing job cannot rely on."""
    problem = (
        _problem(found) if isinstance(found, Dataset) else f"a {type(found).__name__} instead of a Dataset"
    )
    if problem is not None:
        raise FoldwiseError(f"the reader of {name} returned {problem}; correct the reader")


def _problem(found: Dataset) -> str | None:
    if not _DATASET_NAME.fullmatch(found.name):
        return f"the name {found.name!r}, which is not only lower-case letters, digits and hyphens"
    ids = [sequence.clip_id for sequence in found.sequences]
    if len(set(ids)) != len(ids):
        return f"the clip id {next(clip_id for clip_id in ids if ids.count(clip_id) > 1)!r} twice"
    if ids != sorted(ids):
        return "sequences that are not ordered by clip id"
    return next(filter(None, map(partial(_problem_of, found.classes), found.sequences)), _uneven(found))


def _problem_of(classes: Sequence[str], sequence: FrameSequence) -> str | None:
    if sequence.label not in classes:
        return f"{sequence.clip_id!r} with the label {sequence.label!r}, which is not among its classes"
    if bool(sequence.frames) == (sequence.video is not None):
        return f"{sequence.clip_id!r} with both or neither of frames and a video"
    if sequence.split not in {"", "train", "validation", "test"}:
        return f"{sequence.clip_id!r} with the split {sequence.split!r}, not train, validation or test"
    if len(sequence.fold) > MAX_FOLD_NAME_CHARACTERS:
        return (
            f"{sequence.clip_id!r} with a fold of {len(sequence.fold)} characters, more than "
            f"{MAX_FOLD_NAME_CHARACTERS}"
        )
    return None


def _uneven(found: Dataset) -> str | None:
    """What some sequences have and others lack, though all or none must have it."""
    for name in ("subject", "fold", "split"):
        if len({bool(getattr(sequence, name)) for sequence in found.sequences}) > 1:
            return f"sequences with a {name} and others without"
    return None
