"""Writing a clip cache: one part per clip, then one folder that appears by one rename."""

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from services.clip_cache import (
    CLAHE,
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    PLAIN,
    CacheManifest,
    CacheRecord,
    Frames,
    cache_folder,
    sha256_of_file,
    subjects_of,
)
from services.errors import FoldwiseError, Unavailable

GIVEN_SPLIT = ("fold", "split")
"""Columns of the index that only caches of a dataset with its own split have."""


def remove_leftovers(root: Path, dataset: str, fingerprint: str) -> None:
    """Remove the working folder of a finished cache, or what is left of it after a killed removal."""
    shutil.rmtree(_working_folder(cache_folder(root, dataset, fingerprint)), ignore_errors=True)


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
            subjects=len(subjects_of(records)),
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


def _index_text(records: Sequence[CacheRecord]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    # Programs that know no given split can open every cache without one.
    absent = {name for name in GIVEN_SPLIT if not any(getattr(record, name) for record in records)}
    writer.writerow(name for name in CacheRecord.model_fields if name not in absent)
    for record in records:
        row = record.model_dump(mode="json", exclude=absent)
        writer.writerow(json.dumps(v) if isinstance(v, list) else v for v in row.values())
    return text.getvalue()


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
