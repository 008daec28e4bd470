"""The preprocessing job: a dataset's folder becomes a clip cache. It can be killed and started again."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import cv2
import structlog

from preprocessing.clips import ClipSettings, DroppedClip, make_clip
from preprocessing.datasets.reader import Dataset, Sequence
from preprocessing.datasets.registry import read_dataset
from preprocessing.faces import FaceDetector, make_detector
from preprocessing.frames import pass_over
from preprocessing.near_copies import NearCopies, find_near_copies
from services.clip_cache import (
    FORMAT_VERSION,
    CacheManifest,
    CacheWriter,
    cache_folder,
    open_cache,
    remove_leftovers,
    sha256_of_file,
    sole_writer,
)
from services.errors import EXIT_FAILURE, FoldwiseError, InvalidInput, Unavailable
from services.seeds import sha256_of

log = structlog.get_logger()

Report = Callable[[str, int, int], None]
"""Called with a stage (`hash`, `clips`), how many are done, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run of the job did."""

    manifest: CacheManifest
    folder: Path
    made: int
    """Clips made by this run; the others were there already."""
    flagged: dict[str, tuple[str, ...]]
    """Clips in the cache with something to know about them."""
    near_copies: tuple[NearCopies, ...]
    """Clips of different subjects that show the same."""


def preprocess(
    dataset: str,
    root: Path,
    cache_root: Path,
    *,
    settings: ClipSettings,
    processes: int,
    report: Report = lambda _stage, _done, _total: None,
) -> Outcome:
    """Make the clip cache of a dataset, or go on where a killed run stopped, or find it finished.

    Args:
        dataset: name of a reader, such as `ckplus`.
        root: the dataset's folder.
        cache_root: the cache goes to `<cache_root>/<dataset>/<fingerprint>`.
        processes: clips made at the same time.

    Raises:
        InvalidInput, NotFound: unknown dataset or detector, or no such tree.
        FoldwiseError: no clip could be made, or the disk is full.
        Unavailable: a disk failed, or another process makes the same cache now. What is done is kept.
    """
    if processes < 1:
        raise InvalidInput(f"processes is {processes}; give 1 or more", field="processes")
    root = root.expanduser().absolute()
    found = read_dataset(dataset, root)
    if not found.sequences:
        raise InvalidInput(f"{root} holds no labelled sequence of {dataset}", field="root")
    detector = make_detector(settings.detector)
    try:
        fingerprint = _fingerprint(found, settings, detector, report, threads=processes)
        folder = cache_folder(cache_root, dataset, fingerprint)
        made = 0
        if not folder.exists():
            with sole_writer(cache_root, dataset, fingerprint):
                # Another process may have finished it while this one came to the lock.
                if not folder.exists():
                    made = _fill(found, root, cache_root, fingerprint, settings, processes, report)
        remove_leftovers(cache_root, dataset, fingerprint)
    except OSError as error:
        raise _disk_trouble(error, cache_root) from error
    except BrokenProcessPool as error:
        raise FoldwiseError(
            "a process that makes clips was killed, perhaps because memory ran out; what is done is kept, "
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


def _fingerprint(
    found: Dataset, settings: ClipSettings, detector: FaceDetector, report: Report, *, threads: int
) -> str:
    inputs = []
    with ThreadPoolExecutor(threads) as pool:
        try:
            for done, (sequence, hashes) in enumerate(
                zip(found.sequences, pool.map(_hashes, found.sequences), strict=True), start=1
            ):
                frames = [[path.name, sha256] for path, sha256 in zip(sequence.frames, hashes, strict=True)]
                inputs.append([sequence.clip_id, sequence.subject, sequence.label, frames])
                report("hash", done, len(found.sequences))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sha256_of(
        [FORMAT_VERSION, found.name, found.classes, settings.as_dict(), detector.weights_sha256, inputs]
    )


def _hashes(sequence: Sequence) -> list[str]:
    return [_hash(path) for path in sequence.frames]


def _hash(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        pass_over(path, error)
        return f"unreadable: {error.errno}"


def _disk_trouble(error: OSError, cache_root: Path) -> FoldwiseError:
    where = error.filename or cache_root
    kept = "the clips that are done are kept"
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return FoldwiseError(
            f"no space is left for the clip cache below {cache_root} ({error.strerror}); {kept}: make room, "
            "then run the same again"
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}:
        return InvalidInput(
            f"{where}: {error.strerror}; give a cache root that can be written to", field="cache_root"
        )
    return Unavailable(f"{where}: {error.strerror}; {kept}: run the same again once the disk answers")


def _fill(
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
        waiting = {pool.submit(_make_one, sequence, root, settings, writer) for sequence in missing}
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
        settings=settings.as_dict(),
        tools={"opencv": cv2.__version__, "foldwise": version("foldwise")},
        skipped={_below(root, skipped.path): skipped.reason for skipped in found.skipped},
        warnings=found.warnings,
    )
    for clip_id, reason in manifest.dropped.items():
        log.warning("clip_dropped", clip=clip_id, reason=reason)
    return len(missing)


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _set_up_process() -> None:
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A pool's process waits for work for ever when its parent was killed.
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(EXIT_FAILURE)


def _make_one(sequence: Sequence, root: Path, settings: ClipSettings, writer: CacheWriter) -> None:
    clip = make_clip(sequence, root=root, settings=settings, detector=_detector(settings.detector))
    if isinstance(clip, DroppedClip):
        writer.drop(clip.clip_id, clip.reason)
    else:
        writer.add(clip.record, clip.plain, clip.clahe)


@cache
def _detector(name: str) -> FaceDetector:
    return make_detector(name)
