"""Results that no coordinator has taken, kept in a folder until a worker can hand them in.

A fold is finished, but the coordinator does not answer and the worker must end. The result then waits in a file
with its lease, and the next worker with the same folder reports it first. Reporting a result twice gives the
same verdict, so two workers that find the same file do no harm.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import structlog
from pydantic import ValidationError

from services.contracts import Contract, FoldResult, Lease
from services.errors import FoldwiseError, NotFound, Unavailable
from worker.coordinator_client import FINAL_REJECTIONS, CoordinatorClient

log = structlog.get_logger()

KEPT_DAYS = 7
"""Days after which a file is deleted; by then its fold has long been run again."""

SUFFIX, DAMAGED_SUFFIX, PARTIAL_SUFFIX = ".json", ".damaged", ".partial"


class UnreportedResult(Contract):
    """A finished fold with the lease that it was run under, and the coordinator that granted it."""

    coordinator: str
    lease: Lease
    result: FoldResult


def unreported_folder(models_root: Path) -> Path:
    """The folder in the model catalogue, which all workers of a coordinator share; no model has its name."""
    return models_root / ".unreported"


def keep_result(folder: Path, unreported: UnreportedResult) -> Path:
    """Write a result to a new file, complete or not at all, that only its owner can read.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The name does not depend on what a coordinator sends as an id.
    target = folder / (hashlib.sha256(unreported.lease.id.encode()).hexdigest()[:32] + SUFFIX)
    descriptor, name = tempfile.mkstemp(suffix=PARTIAL_SUFFIX, dir=folder)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(unreported.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return target


def report_unreported(client: CoordinatorClient, folder: Path, coordinator: str) -> None:
    """Report all results in the folder; those that were counted or rejected are deleted.

    Args:
        client: of the coordinator.
        folder: may be missing.
        coordinator: its URL.

    Raises:
        Unavailable: the coordinator does not answer; all files that are left stay.
    """
    _delete_old(folder)
    for file in _files(folder, SUFFIX):
        unreported = _read(file)
        if unreported is not None:
            _report(client, file, unreported, coordinator)


def _report(client: CoordinatorClient, file: Path, unreported: UnreportedResult, coordinator: str) -> None:
    lease = unreported.lease.id
    try:
        client.report(unreported.lease, unreported.result, more=False)
    except Unavailable:
        raise
    except FINAL_REJECTIONS as rejection:
        if isinstance(rejection, NotFound) and unreported.coordinator != coordinator:
            log.info(
                "unreported_result_of_another_coordinator", lease=lease, coordinator=unreported.coordinator
            )
            return
        log.warning("unreported_result_refused", lease=lease, reason=rejection.message)
    except FoldwiseError as error:
        # Such as a token that is refused; then the worker's own claim says so.
        log.warning("unreported_result_not_handed_in", lease=lease, reason=error.message)
        return
    else:
        log.info("unreported_result_handed_in", lease=lease)
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)


def _read(file: Path) -> UnreportedResult | None:
    try:
        # A newer worker may have written more.
        return UnreportedResult.model_validate_json(file.read_bytes(), extra="ignore")
    except FileNotFoundError:
        # Another worker has handed it in.
        return None
    except OSError as error:
        log.warning("unreported_result_not_readable", file=str(file), reason=error.strerror)
    except ValidationError as error:
        aside = file.with_suffix(DAMAGED_SUFFIX)
        log.warning("unreported_result_damaged", file=str(aside), reason=str(error).splitlines()[0])
        with contextlib.suppress(OSError):
            file.rename(aside)
    return None


def _delete_old(folder: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 86_400
    for file in _files(folder, SUFFIX, DAMAGED_SUFFIX, PARTIAL_SUFFIX):
        with contextlib.suppress(OSError):
            if file.stat().st_mtime < oldest:
                file.unlink()
                log.warning("unreported_result_too_old", file=str(file), days=KEPT_DAYS)


def _files(folder: Path, *suffixes: str) -> Iterator[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("unreported_results_not_readable", folder=str(folder), reason=error.strerror)
        return
    yield from found
