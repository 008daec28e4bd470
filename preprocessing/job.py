"""The preprocessing job: turns a dataset's folder into a clip cache. It can be killed and started again."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import structlog

from preprocessing.clips import ClipSettings, DroppedClip, make_clip
from preprocessing.datasets.reader import Dataset, FrameSequence, as_text
from preprocessing.datasets.registry import read_dataset
from preprocessing.datasets.tree import raise_if_disk_failed
from preprocessing.faces import FaceDetector, make_detector
from preprocessing.near_copies import NearCopies, find_near_copies
from services.clip_cache import FORMAT_VERSION, CacheManifest, cache_folder, open_cache, sha256_of_file
from services.clip_cache_writer import CacheWriter, remove_leftovers, sole_writer
from services.errors import EXIT_FAILURE, FoldwiseError, InvalidInput, Unavailable
from services.seeds import sha256_of

log = structlog.get_logger()

_TOOLS = {
    "opencv": "opencv-python-headless",
    "pyav": "av",
    "pillow": "pillow",
    "simplejpeg": "simplejpeg",
    "foldwise": "foldwise",
}
"""Packages whose code decides how pixels come out, by their names in the manifest."""

_MAX_REASONS = 5
"""Reasons in the error about a dataset without sequences."""

Report = Callable[[str, int, int], None]
"""Called with the stage (`hash` or `clips`), the number of sequences done, and their total."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run of the job did."""

    manifest: CacheManifest
    folder: Path
    made: int
    """Sequences processed by this run; earlier runs processed the others."""
    flagged: dict[str, tuple[str, ...]]
    """Flags of each clip in the cache that has any, by clip id."""
    near_copies: tuple[NearCopies, ...]
    """Near-identical clips of different subjects."""


def preprocess(
    dataset: str,
    root: Path,
    cache_root: Path,
    *,
    settings: ClipSettings,
    processes: int,
    reader_settings: Mapping[str, str] | None = None,
    report: Report = lambda _stage, _done, _total: None,
) -> Outcome:
    """Make the clip cache of a dataset; resume a killed run; return a finished cache as it is.

    Args:
        dataset: name of a reader, such as `ckplus`.
        root: the dataset's folder.
        cache_root: the cache is written to `<cache_root>/<dataset>/<fingerprint>`.
        settings: how clips are made.
        processes: number of processes that make clips.
        reader_settings: the reader's settings, such as `{"lighting": "Weak"}`.
        report: called as the work proceeds.

    Raises:
        InvalidInput, NotFound: the dataset, a setting or the detector is unknown, or `root` is no such dataset.
        FoldwiseError: no clip could be made, the disk is full, or a process was killed.
        Unavailable: a disk failed, or another process is making the same cache.

    Finished clips are kept after an error.
    """
    if processes < 1:
        raise InvalidInput(f"processes is {processes}; give 1 or more", field="processes")
    root = root.expanduser().absolute()
    try:
        found = read_dataset(dataset, root, reader_settings)
    except OSError as error:
        raise Unavailable(
            f"{error.filename or root}: {error.strerror}; run the same again once the disk answers"
        ) from error
    if not found.sequences:
        raise InvalidInput(_no_sequence_message(found, root), field="root")
    detector = make_detector(settings.detector)
    try:
        fingerprint = _fingerprint(found, settings, detector, report, threads=processes)
        folder = cache_folder(cache_root, found.name, fingerprint)
        made = 0
        if not folder.exists():
            with sole_writer(cache_root, found.name, fingerprint):
                # Another process may have finished it before this one got the lock.
                if not folder.exists():
                    made = _make_missing_clips(
                        found, root, cache_root, fingerprint, settings, processes, report
                    )
        remove_leftovers(cache_root, found.name, fingerprint)
    except OSError as error:
        raise _disk_error(error, cache_root) from error
    except BrokenProcessPool as error:
        raise FoldwiseError(
            "a process that makes clips was killed, perhaps because memory ran out; finished clips are kept: "
            "run the same again, with fewer processes"
        ) from error
    cache = open_cache(folder)
    flagged = {record.clip_id: record.flags for record in cache.records if record.flags}
    return Outcome(
        manifest=cache.manifest,
        folder=folder,
        made=made,
        flagged=flagged,
        near_copies=find_near_copies(cache),
    )


def _no_sequence_message(found: Dataset, root: Path) -> str:
    message = f"{as_text(str(root))} holds no labelled sequence of {found.name}"
    # Reasons of single rows of a list say more than those of files that are not in it.
    for skipped in (tuple(skip for skip in found.skipped if skip.part), found.skipped):
        reasons = [f"{where}: {why}" for where, why in replace(found, skipped=skipped).reasons(root).items()]
        if reasons:
            what = "rows" if skipped[0].part else "things in it"
            shown = "; ".join(reasons[:_MAX_REASONS])
            more = "; ..." if len(reasons) > _MAX_REASONS else ""
            return f"{message}; {len(reasons)} {what} were skipped, such as {shown}{more}"
    return f"{message}; the folder is empty"


def _fingerprint(
    found: Dataset, settings: ClipSettings, detector: FaceDetector, report: Report, *, threads: int
) -> str:
    inputs = []
    hash_of = cache(_hash)  # one video can hold many sequences

    def hashes_of(sequence: FrameSequence) -> list[str]:
        return [hash_of(path) for path in sequence.files]

    with ThreadPoolExecutor(threads) as pool:
        try:
            for done, (sequence, hashes) in enumerate(
                zip(found.sequences, pool.map(hashes_of, found.sequences), strict=True), start=1
            ):
                files = [
                    [as_text(path.name), sha256] for path, sha256 in zip(sequence.files, hashes, strict=True)
                ]
                entry: list[Any] = [
                    sequence.clip_id,
                    sequence.subject,
                    sequence.label,
                    files,
                    asdict(sequence.span),
                ]
                inputs.append(entry + _given_split(sequence))
                report("hash", done, len(found.sequences))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sha256_of(
        [
            FORMAT_VERSION,
            found.name,
            found.classes,
            found.colour,
            settings.as_dict(),
            detector.weights_sha256,
            inputs,
        ]
    )


def _given_split(sequence: FrameSequence) -> list[dict[str, str]]:
    """What the dataset's own split adds to the fingerprint: nothing where it has none."""
    given = {"fold": sequence.fold, "split": sequence.split}
    return [given] if any(given.values()) else []


def _hash(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise_if_disk_failed(path, error)
        return f"unreadable: {error.errno}"


def _disk_error(error: OSError, cache_root: Path) -> FoldwiseError:
    where = error.filename or cache_root
    kept = "finished clips are kept"
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return FoldwiseError(
            f"no space is left for the clip cache under {cache_root} ({error.strerror}); {kept}: make room, "
            "then run the same again"
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}:
        return InvalidInput(
            f"{where}: {error.strerror}; give a cache root that can be written to", field="cache_root"
        )
    return Unavailable(f"{where}: {error.strerror}; {kept}: run the same again once the disk answers")


def _make_missing_clips(
    found: Dataset,
    root: Path,
    cache_root: Path,
    fingerprint: str,
    settings: ClipSettings,
    processes: int,
    report: Report,
) -> int:
    writer = CacheWriter(cache_root, found.name, fingerprint)
    missing = [sequence for sequence in found.sequences if not writer.has(sequence.clip_id)]
    total = len(found.sequences)
    # Spawned, not forked: OpenCV's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_set_up_process) as pool:
        waiting = {pool.submit(_make_one, sequence, settings, found.colour, writer) for sequence in missing}
        try:
            report("clips", total - len(waiting), total)
            while waiting:
                finished, waiting = wait(waiting, timeout=1.0, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                report("clips", total - len(waiting), total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    manifest = writer.finish(
        clip_ids=[sequence.clip_id for sequence in found.sequences],
        classes=found.classes,
        settings={**settings.as_dict(), "reader": dict(found.settings)},
        tools={name: version(package) for name, package in _TOOLS.items()},
        skipped=found.reasons(root),
        warnings=found.warnings,
    )
    for clip_id, reason in manifest.dropped.items():
        log.warning("clip_dropped", clip=clip_id, reason=reason)
    return len(missing)


def _set_up_process() -> None:
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Otherwise a process of the pool waits for work forever after its parent was killed.
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(EXIT_FAILURE)


def _make_one(sequence: FrameSequence, settings: ClipSettings, colour: bool, writer: CacheWriter) -> None:
    clip = make_clip(sequence, settings=settings, detector=_detector(settings.detector), colour=colour)
    if isinstance(clip, DroppedClip):
        writer.drop(clip.clip_id, clip.reason)
    else:
        writer.add(clip.record, clip.plain, clip.clahe)


@cache
def _detector(name: str) -> FaceDetector:
    return make_detector(name)
