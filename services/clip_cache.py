"""The clip cache: face clips on disk, written once, verified, read by many processes.

`<root>/<dataset>/<fingerprint>/` holds

- `clips.npy`        uint8, clips x frames x size x size (x 3 if the set is in colour)
- `clips_clahe.npy`  the same after CLAHE
- `index.csv`        a row per clip, in array order
- `manifest.json`    written last: a folder without it is no cache

The fingerprint covers inputs and settings, but neither times nor tools, so it is known before the work starts.
A cache appears by one rename, complete or not at all.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from services.errors import CacheMismatch, CacheUnreadable
from services.folds import Clip
from services.official_splits import Part

FORMAT_VERSION = 2
"""Version of new caches: it rises when the same inputs give other clips or flags, or when the files change."""

READABLE_VERSIONS = frozenset({1, 2})
"""Versions whose files are like those of new caches, so that studies continue on them."""


PLAIN, CLAHE, INDEX, MANIFEST = "clips.npy", "clips_clahe.npy", "index.csv", "manifest.json"


Frames = NDArray[np.uint8]
"""Frames of one clip or of all: uint8, (clips x) frames x size x size (x 3: red, green, blue)."""


class NamedCache(Protocol):
    """What a clip cache is found by."""

    @property
    def dataset(self) -> str:
        """Name of the dataset."""

    @property
    def fingerprint(self) -> str:
        """Hash of its inputs and settings, in hex."""


FoundCache = TypeVar("FoundCache", bound=NamedCache)


class CacheRecord(BaseModel):
    """One clip; a row of `index.csv`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip_id: str
    subject: str
    """The person; empty if the dataset gives no subjects."""
    label: str
    source: str
    """Folder of the frames, or the video, relative to the dataset's folder."""
    frames: tuple[str, ...]
    """File name of each cached frame; a repeated frame repeats its name."""
    detector: str
    boxes: tuple[tuple[float, float, float, float] | None, ...]
    """x, y, width, height in pixels of the source frame; None if no face was found."""
    confidences: tuple[float | None, ...]
    repeated: int
    """Number of frames at the end that repeat the last one."""
    flags: tuple[str, ...]
    fold: str = ""
    """Name of the clip's fold in the dataset's own split; empty if it has none."""
    split: Part | Literal[""] = ""
    """Part of the dataset's own split that the clip is in; empty if it has none."""

    def as_clip(self, label: int) -> Clip:
        """The clip as splits and scores see it, with this class number."""
        return Clip(
            clip_id=self.clip_id,
            subject=self.subject or self.clip_id,
            label=label,
            has_subject=bool(self.subject),
            fold=self.fold,
            split=self.split,
        )


class CacheManifest(BaseModel):
    """`manifest.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    dataset: str
    fingerprint: str
    classes: tuple[str, ...]
    class_counts: dict[str, int]
    clips: int
    subjects: int
    """0 if the dataset gives no subjects."""
    frames: int
    frame_size: int
    channels: int
    settings: dict[str, Any]
    tools: dict[str, str]
    files: dict[str, str]
    """SHA-256 of each other file."""
    dropped: dict[str, str]
    """Reason for each labelled sequence without a clip, by clip id."""
    skipped: dict[str, str]
    """Reason for each path that the reader skipped, relative to the dataset's folder."""
    warnings: tuple[str, ...]


class ClipCache:
    """A finished cache, memory-mapped and read-only."""

    def __init__(self, folder: Path, manifest: CacheManifest, records: tuple[CacheRecord, ...]) -> None:
        """Use `open_cache`."""
        self.folder = folder
        self.manifest = manifest
        self.records = records

    def clips(self) -> tuple[Clip, ...]:
        """Clips in array order, labels as numbers in the order of `manifest.classes`."""
        number = {name: i for i, name in enumerate(self.manifest.classes)}
        return tuple(record.as_clip(number[record.label]) for record in self.records)

    def frames(self, *, clahe: bool) -> Frames:
        """All clips, uint8, clips x frames x size x size (x 3), memory-mapped read-only."""
        array: Frames = np.load(self.folder / (CLAHE if clahe else PLAIN), mmap_mode="r", allow_pickle=False)
        return array


def open_cache(folder: Path, *, verify: bool = True) -> ClipCache:
    """Open a cache after checking that it is complete.

    Args:
        folder: `<root>/<dataset>/<fingerprint>`.
        verify: also compare the SHA-256 of every file with the manifest.

    Raises:
        CacheMismatch: no manifest, another format or fingerprint, or a missing or changed file.
        CacheUnreadable: this machine cannot read the manifest.
    """
    manifest = _read_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CacheMismatch(f"the clip cache {folder} has lost {name}; run `foldwise preprocess` again")
        if verify and sha256_of_file(path) != expected:
            raise CacheMismatch(f"{path} is not as it was written; delete {folder} and preprocess again")
    try:
        records = tuple(_read_index((folder / INDEX).read_bytes().decode("utf-8")))
        cache = ClipCache(folder, manifest, records)
        _check_shape(cache, cache.frames(clahe=False))
        _check_shape(cache, cache.frames(clahe=True))
    except (ValueError, KeyError, csv.Error) as error:
        raise CacheMismatch(
            f"the clip cache {folder} cannot be read ({error}); delete it and preprocess again"
        ) from error
    return cache


def subjects_of(records: Iterable[CacheRecord]) -> frozenset[str]:
    """The subjects of these clips; empty if the dataset gives none."""
    return frozenset(record.subject for record in records) - {""}


def subjects_words(subjects: int) -> str:
    """For people: the number of subjects of a cache, such as `5 subjects`; 0 means that it gives none."""
    return f"{subjects} subjects" if subjects else "unknown subjects"


def list_caches(root: Path) -> tuple[CacheManifest, ...]:
    """Manifests of the finished caches under `root`, sorted by dataset and fingerprint, without broken ones.

    Raises:
        CacheUnreadable: `root` exists, and this machine cannot read it.
    """
    found = []
    for dataset in _entries(root):
        try:
            for folder in _entries(dataset):
                with contextlib.suppress(CacheMismatch):
                    found.append(_read_manifest(folder))
        except CacheUnreadable:
            continue
    return tuple(found)


def check_readable(root: Path) -> None:
    """Check that this machine can read the manifest of every cache under `root`.

    Raises:
        CacheUnreadable: it cannot; the message names the first such path and the cause.
    """
    for dataset in _entries(root):
        for folder in _entries(dataset):
            try:
                _read_manifest(folder)
            except CacheUnreadable:
                raise
            except CacheMismatch:
                continue


def find_cache(root: Path, wanted: str) -> CacheManifest:
    """The one cache that `wanted` names: a dataset, or `dataset/fingerprint` (a prefix is enough).

    Raises:
        CacheMismatch: none or several match; the message lists them.
        CacheUnreadable: `root` exists, and this machine cannot read it.
    """
    return match_cache(list_caches(root), wanted)


def match_cache(known: Sequence[FoundCache], wanted: str) -> FoundCache:
    """The one of these caches that `wanted` names, as for `find_cache`.

    Raises:
        CacheMismatch: none or several match; the message lists them.
    """
    dataset, _, prefix = wanted.partition("/")
    matching = [m for m in known if m.dataset == dataset and m.fingerprint.startswith(prefix)]
    if len(matching) == 1:
        return matching[0]
    names = ", ".join(f"{m.dataset}/{m.fingerprint[:12]}" for m in (matching or known)) or "none"
    if matching:
        raise CacheMismatch(f"{wanted!r} names {len(matching)} clip caches; say which: {names}", field="cache")
    raise CacheMismatch(
        f"no clip cache {wanted!r} (there are: {names}); make it with `foldwise preprocess`", field="cache"
    )


def cache_folder(root: Path, dataset: str, fingerprint: str) -> Path:
    """Folder of a cache."""
    return root / dataset / fingerprint


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> CacheManifest:
    try:
        manifest = CacheManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheMismatch(f"{folder} is no finished clip cache: it has no {MANIFEST}") from error
    except OSError as error:
        raise _unreadable(folder / MANIFEST, error) from error
    except ValidationError as error:
        raise CacheMismatch(f"{folder / MANIFEST} cannot be read as a manifest; preprocess again") from error
    if manifest.format_version not in READABLE_VERSIONS:
        readable = " and ".join(map(str, sorted(READABLE_VERSIONS)))
        raise CacheMismatch(
            f"{folder} has cache format {manifest.format_version}, this foldwise reads {readable}; "
            "preprocess again"
        )
    if (manifest.dataset, manifest.fingerprint) != (folder.parent.name, folder.name):
        raise CacheMismatch(f"{folder} holds the cache {manifest.dataset}/{manifest.fingerprint}, not its own")
    return manifest


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted; nothing where it does not exist or is a file."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(path: Path, error: OSError) -> CacheUnreadable:
    return CacheUnreadable(
        f"cannot read {path}: {error.strerror}; check the mount of the clip caches on this machine, and the "
        "rights of this user",
        field="cache_root",
    )


def _check_shape(cache: ClipCache, frames: Frames) -> None:
    m = cache.manifest
    expected = (m.clips, m.frames, m.frame_size, m.frame_size, *([3] if m.channels == 3 else []))
    if frames.shape != expected or frames.dtype != np.uint8 or len(cache.records) != m.clips:
        raise CacheMismatch(
            f"{cache.folder} holds arrays of shape {frames.shape}, its manifest says {expected}"
        )


def _read_index(text: str) -> Iterator[CacheRecord]:
    listed = {name for name, f in CacheRecord.model_fields.items() if "tuple" in str(f.annotation)}
    for row in csv.DictReader(io.StringIO(text)):
        yield CacheRecord.model_validate({k: json.loads(v) if k in listed else v for k, v in row.items()})
