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

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from services.errors import CacheMismatch, FoldwiseError, Unavailable
from services.folds import Clip

FORMAT_VERSION = 1
PLAIN, CLAHE, INDEX, MANIFEST = "clips.npy", "clips_clahe.npy", "index.csv", "manifest.json"

Frames = NDArray[np.uint8]
"""Frames of one clip or of all: uint8, (clips x) frames x size x size (x 3: red, green, blue)."""


class CacheRecord(BaseModel):
    """One clip; a row of `index.csv`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip_id: str
    subject: str
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
        return tuple(Clip(clip_id=r.clip_id, subject=r.subject, label=number[r.label]) for r in self.records)

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


def list_caches(root: Path) -> tuple[CacheManifest, ...]:
    """Manifests of the finished caches under `root`, sorted by dataset and fingerprint, without broken ones."""
    found = []
    for path in sorted(root.glob(f"*/*/{MANIFEST}")):
        try:
            found.append(_read_manifest(path.parent))
        except CacheMismatch:
            continue
    return tuple(found)


def find_cache(root: Path, wanted: str) -> CacheManifest:
    """The one cache that `wanted` names: a dataset, or `dataset/fingerprint` (a prefix is enough).

    Raises:
        CacheMismatch: none or several match; the message lists them.
    """
    dataset, _, prefix = wanted.partition("/")
    known = list_caches(root)
    matching = [m for m in known if m.dataset == dataset and m.fingerprint.startswith(prefix)]
    if len(matching) == 1:
        return matching[0]
    names = ", ".join(f"{m.dataset}/{m.fingerprint[:12]}" for m in (matching or known)) or "none"
    if matching:
        raise CacheMismatch(f"{wanted!r} names {len(matching)} clip caches; say which: {names}", field="cache")
    raise CacheMismatch(
        f"no clip cache {wanted!r} (there are: {names}); make it with `foldwise preprocess`", field="cache"
    )


def remove_leftovers(root: Path, dataset: str, fingerprint: str) -> None:
    """Remove the working folder of a finished cache, or what is left of it after a killed removal."""
    shutil.rmtree(_working_folder(cache_folder(root, dataset, fingerprint)), ignore_errors=True)


def cache_folder(root: Path, dataset: str, fingerprint: str) -> Path:
    """Folder of a cache."""
    return root / dataset / fingerprint


@contextmanager
def sole_writer(root: Path, dataset: str, fingerprint: str) -> Iterator[None]:
    """Hold the lock for making this cache; a killed process loses it at once.

    Raises:
        Unavailable: another process is making this cache.
    """
    working = _working_folder(cache_folder(root, dataset, fingerprint))
    descriptor = _lock_folder(working)
    while descriptor is None:
        descriptor = _lock_folder(working)
    try:
        yield
    finally:
        os.close(descriptor)


class CacheWriter:
    """Writes a cache clip by clip, so that a killed run can resume.

    Each clip is a separate part in a hidden folder beside the cache, written under a temporary name and
    renamed; `finish` joins the parts and renames the result into place.
    """

    def __init__(self, root: Path, dataset: str, fingerprint: str) -> None:
        """Make the hidden working folder if it does not exist."""
        self.target = cache_folder(root, dataset, fingerprint)
        self.dataset = dataset
        self.fingerprint = fingerprint
        self.working = _working_folder(self.target)
        self._parts = self.working / "parts"
        self._parts.mkdir(parents=True, exist_ok=True)

    def has(self, clip_id: str) -> bool:
        """Whether this run or an earlier one wrote this clip's part."""
        return self._part(clip_id).exists()

    def add(self, record: CacheRecord, plain: Frames, clahe: Frames) -> None:
        """Store a clip; both arrays are uint8, frames x size x size (x 3)."""
        self._write_part(record.clip_id, {"record": record.model_dump(mode="json")}, plain=plain, clahe=clahe)

    def drop(self, clip_id: str, reason: str) -> None:
        """Store that a sequence gives no clip, and why."""
        self._write_part(clip_id, {"dropped": reason})

    def finish(
        self,
        *,
        clip_ids: Sequence[str],
        classes: Sequence[str],
        settings: dict[str, Any],
        tools: dict[str, str],
        skipped: dict[str, str],
        warnings: Sequence[str],
    ) -> CacheManifest:
        """Join the parts of `clip_ids`, in that order, and put the cache into place.

        Args:
            clip_ids: every sequence that was added or dropped.
            classes: class names in the order of their label numbers.
            settings: how the clips were made, for the manifest.
            tools: versions of the tools by name, for the manifest.
            skipped: reason for each path that the reader skipped.
            warnings: the reader's warnings.

        Raises:
            FoldwiseError: no clip is left, or a part was damaged after it was written (it is then removed, and
                the next run makes it again).
            OSError: writing failed; the parts remain.
        """
        heads = {clip_id: self._head(clip_id) for clip_id in clip_ids}
        dropped = {clip_id: head["dropped"] for clip_id, head in heads.items() if "dropped" in head}
        records = [CacheRecord.model_validate(h["record"]) for h in heads.values() if "record" in h]
        if not records:
            raise FoldwiseError(
                "no clip is left: every sequence was dropped, the first because "
                + next(iter(dropped.values()), "the dataset is empty")
            )
        final = self.working / "final"
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        try:
            manifest = self._write_final(
                final,
                records,
                classes=tuple(classes),
                settings=settings,
                tools=tools,
                dropped=dropped,
                skipped=skipped,
                warnings=tuple(warnings),
            )
        except OSError:
            # Half a cache is useless, and a full disk needs its space.
            shutil.rmtree(final, ignore_errors=True)
            raise
        final.rename(self.target)
        _sync_folder(self.target.parent)
        remove_leftovers(self.target.parent.parent, self.dataset, self.fingerprint)
        return manifest

    def _write_final(
        self,
        final: Path,
        records: Sequence[CacheRecord],
        *,
        classes: tuple[str, ...],
        settings: dict[str, Any],
        tools: dict[str, str],
        dropped: dict[str, str],
        skipped: dict[str, str],
        warnings: tuple[str, ...],
    ) -> CacheManifest:
        shape = self._join(final / PLAIN, "plain", records)
        self._join(final / CLAHE, "clahe", records)
        _write_synced(final / INDEX, _index_text(records).encode())
        manifest = CacheManifest(
            format_version=FORMAT_VERSION,
            dataset=self.dataset,
            fingerprint=self.fingerprint,
            classes=classes,
            class_counts={name: sum(r.label == name for r in records) for name in classes},
            clips=len(records),
            subjects=len({r.subject for r in records}),
            frames=shape[1],
            frame_size=shape[2],
            channels=shape[4] if len(shape) == 5 else 1,
            settings=settings,
            tools=tools,
            files={name: sha256_of_file(final / name) for name in (PLAIN, CLAHE, INDEX)},
            dropped=dropped,
            skipped=skipped,
            warnings=warnings,
        )
        _write_synced(final / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
        _sync_folder(final)
        return manifest

    def _part(self, clip_id: str) -> Path:
        # Ids come from folder names of a dataset; their hash is always a plain file name.
        return self._parts / f"{hashlib.sha256(clip_id.encode()).hexdigest()[:32]}.npz"

    def _write_part(self, clip_id: str, head: dict[str, Any], **arrays: Frames) -> None:
        buffer = io.BytesIO()
        text = np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)
        np.savez(buffer, allow_pickle=False, head=text, **arrays)
        temporary = self._part(clip_id).with_suffix(f".{os.getpid()}.tmp")
        try:
            _write_synced(temporary, buffer.getvalue())
            temporary.rename(self._part(clip_id))
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _head(self, clip_id: str) -> dict[str, Any]:
        head: dict[str, Any] = json.loads(self._read_part(clip_id, "head").tobytes())
        return head

    def _read_part(self, clip_id: str, name: str) -> Frames:
        path = self._part(clip_id)
        try:
            # Opened here, because NumPy does not close a file that is no archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as part:
                content: Frames = part[name]
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
            path.unlink(missing_ok=True)
            raise FoldwiseError(
                f"{path} was damaged after it was written ({error}) and is removed; "
                "run the same again to make this clip again"
            ) from error
        return content

    def _join(self, path: Path, variant: str, records: Sequence[CacheRecord]) -> tuple[int, ...]:
        # Written, not memory-mapped: a mapped file on a full disk kills the process without an error.
        shape: tuple[int, ...] = ()
        with path.open("wb") as file:
            for record in records:
                frames = self._read_part(record.clip_id, variant)
                if not shape:
                    shape = (len(records), *frames.shape)
                    np.lib.format.write_array_header_1_0(
                        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
                    )
                file.write(frames.tobytes())
            file.flush()
            os.fsync(file.fileno())
        return shape


def _lock_folder(working: Path) -> int | None:
    """A descriptor of the locked working folder; None if its holder has just removed it."""
    working.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(working, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Unavailable(
            f"another process is making the clip cache in {working}; wait for it, or end it, and try again"
        ) from None
    except OSError as error:
        # Some network file systems have no locks; on them, users must start one job at a time.
        if error.errno not in {errno.ENOLCK, errno.ENOTSUP}:
            os.close(descriptor)
            raise
    if working.exists() and os.path.samestat(os.fstat(descriptor), working.stat()):
        return descriptor
    os.close(descriptor)
    return None


def _working_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> CacheManifest:
    try:
        manifest = CacheManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise CacheMismatch(f"{folder} is no finished clip cache: it has no {MANIFEST}") from error
    except ValidationError as error:
        raise CacheMismatch(f"{folder / MANIFEST} cannot be read as a manifest; preprocess again") from error
    if manifest.format_version != FORMAT_VERSION:
        raise CacheMismatch(
            f"{folder} has cache format {manifest.format_version}, this foldwise reads {FORMAT_VERSION}; "
            "preprocess again"
        )
    if (manifest.dataset, manifest.fingerprint) != (folder.parent.name, folder.name):
        raise CacheMismatch(f"{folder} holds the cache {manifest.dataset}/{manifest.fingerprint}, not its own")
    return manifest


def _check_shape(cache: ClipCache, frames: Frames) -> None:
    m = cache.manifest
    expected = (m.clips, m.frames, m.frame_size, m.frame_size, *([3] if m.channels == 3 else []))
    if frames.shape != expected or frames.dtype != np.uint8 or len(cache.records) != m.clips:
        raise CacheMismatch(
            f"{cache.folder} holds arrays of shape {frames.shape}, its manifest says {expected}"
        )


def _index_text(records: Iterable[CacheRecord]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(CacheRecord.model_fields)
    for record in records:
        row = record.model_dump(mode="json")
        writer.writerow(json.dumps(v) if isinstance(v, list) else v for v in row.values())
    return text.getvalue()


def _read_index(text: str) -> Iterator[CacheRecord]:
    listed = {name for name, f in CacheRecord.model_fields.items() if "tuple" in str(f.annotation)}
    for row in csv.DictReader(io.StringIO(text)):
        yield CacheRecord.model_validate({k: json.loads(v) if k in listed else v for k, v in row.items()})


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
