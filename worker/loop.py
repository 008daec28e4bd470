"""A worker's loop: claim a fold, train and test it, report it, and get the next one in the same reply."""

from __future__ import annotations

import contextlib
import signal
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

import structlog

from client.connection import Connection
from services.clip_cache import (
    ClipCache,
    cache_folder,
    check_readable,
    list_caches,
    open_cache,
)
from services.compute_plans import default_threads
from services.contracts import Failure, FoldAssignment, FoldResult, Lease, Provenance, WorkerInfo
from services.errors import (
    EXIT_TRY_AGAIN,
    CacheMismatch,
    FoldwiseError,
    InvalidInput,
    LeaseSuperseded,
    NotFound,
    PlanNotSound,
    ResultConflict,
    StudyOver,
    TokenRefused,
    TooManyRequests,
    Unavailable,
    WorkerDrained,
    WorkerTooNew,
    WorkerTooOld,
)
from services.model_catalogue import StagedModel
from services.revision import running_revision
from services.usable_cores import usable_cores
from worker.coordinator_client import CoordinatorClient
from worker.failures import class_of_repeated, is_environment_error
from worker.final_models import can_keep_models, report_result, report_staged, stage
from worker.heartbeat import HeartbeatThread
from worker.settings import WorkerSettings
from worker.training.device import (
    choose_device,
    device_name,
    keep_freed_memory,
    make_deterministic,
)
from worker.training.fit import Progress, run_fold, train_model
from worker.training.gpus import check_gpu, why_no_gpu
from worker.training.pretrained import PretrainedModel, open_pretrained
from worker.training.training_device import TrainingDevice
from worker.unreported_results import UnreportedResult, keep_result, report_unreported, unreported_folder

log = structlog.get_logger()

ALIVE_INTERVAL_SECONDS = 5.0
"""Minimum seconds between two touches of the alive file."""

PROGRESS_INTERVAL_SECONDS = 10.0
"""Minimum seconds between two progress lines in the log."""

MAX_ENVIRONMENT_FAILURES = 3
"""Consecutive failures of the worker's environment after which the worker stops."""

UPGRADE_PAUSE_SECONDS = 10.0
"""Seconds between two claims to a coordinator that must be upgraded first."""


class Terminated(BaseException):
    """SIGTERM, Ctrl-C, or the worker is drained: release the fold and stop."""


class FoldAbandoned(Exception):
    """The coordinator has told the worker to stop this fold."""


class Worker:
    """Runs one fold after another until its study is over or it is told to stop."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        chosen = choose_device(settings.device, require_gpu=settings.require_gpu)
        make_deterministic(chosen)
        if chosen.type == "cuda":
            check_gpu(chosen)
        self._threads = settings.threads or default_threads(usable_cores())
        self._device = TrainingDevice(chosen, threads=self._threads)
        self._caches: dict[str, ClipCache] = {}
        self._model: PretrainedModel | None = None
        self._keeps_models = can_keep_models(settings.models_root)
        self._stopping = False
        self._interruptible = False
        self._failures_in_a_row = 0
        self._too_new_since: float | None = None
        self._alive_at = -ALIVE_INTERVAL_SECONDS

    def run(self) -> int:
        """Run folds until there is no more work.

        Returns:
            The exit code of the process.

        Raises:
            FoldwiseError: the coordinator rejects the token or does not answer, the cache does not match, or
                this machine cannot run folds.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        device = self._device.torch_device
        name = device_name(device)
        if device.type == "cpu":
            keep_freed_memory()
            cause = {"cause": why_no_gpu().cause} if self._settings.device is None else {}
            log.warning("no_gpu", note="training on the CPU", threads=self._threads, **cause)
        info = WorkerInfo(id=str(uuid.uuid4()), name=self._settings.name, device=name)
        log.info("worker_started", worker=info.name, device=name, coordinator=self._settings.url)
        connection = Connection(
            self._settings.url,
            self._settings.token,
            give_up_after=self._settings.give_up_after,
            pause=self._pause,
        )
        with connection:
            try:
                self._work(CoordinatorClient(connection, info))
            except StudyOver as over:
                log.info("worker_done", reason=over.message)
                return over.exit_code
            except WorkerDrained as drained:
                log.info("worker_stopped", reason=drained.message)
                return drained.exit_code
            except (WorkerTooOld, WorkerTooNew) as refused:
                log.error("worker_version_refused", reason=refused.message)
                return refused.exit_code
            except Terminated:
                log.info("worker_stopped")
                return EXIT_TRY_AGAIN

    def _work(self, client: CoordinatorClient) -> NoReturn:
        assignment: FoldAssignment | None = None
        if self._settings.models_root is not None and self._keeps_models:
            with self._interrupts():
                report_staged(client, self._settings.models_root)
                folder = unreported_folder(self._settings.models_root)
                report_unreported(client, folder, self._settings.url)
        while True:
            self._touch_alive_file()
            if assignment is None:
                # If the reply came too late, its lease has expired: claim again.
                with self._interrupts(), contextlib.suppress(LeaseSuperseded):
                    assignment = self._claim(client)
                continue
            assignment = self._run_one(client, assignment)

    def _claim(self, client: CoordinatorClient) -> FoldAssignment | None:
        try:
            assignment = client.claim(
                study=self._settings.study,
                caches=self._fingerprints(),
                plans=self._device.plans,
                threads=self._threads if self._device.torch_device.type == "cpu" else 0,
                keeps_models=self._keeps_models,
            )
        except CacheMismatch:
            # If the study's cache is here and only this machine cannot read it, another machine may.
            check_readable(self._settings.cache_root)
            raise
        except WorkerTooNew as refused:
            # In an upgrade the first workers of the new version can meet the last coordinator of the old one.
            now = time.monotonic()
            self._too_new_since = self._too_new_since or now
            if now - self._too_new_since >= self._settings.give_up_after:
                raise
            log.warning("coordinator_too_old", reason=refused.message, again_in=UPGRADE_PAUSE_SECONDS)
            self._pause(UPGRADE_PAUSE_SECONDS)
            return None
        self._too_new_since = None
        return assignment

    def _run_one(self, client: CoordinatorClient, assignment: FoldAssignment) -> FoldAssignment | None:
        lease = assignment.lease
        where = {
            "study": assignment.study,
            "trial": assignment.trial,
            "fold": f"{assignment.fold + 1}/{assignment.folds}",
        }
        if assignment.fold == 0:
            log.info("trial_started", **where, **assignment.hyperparameters.model_dump())
        try:
            with HeartbeatThread(client, lease) as heartbeat, self._interrupts():
                result, staged = self._train(assignment, heartbeat)
        except Terminated:
            self._release(client, lease, where)
            raise
        except FoldAbandoned:
            log.info("fold_abandoned", **where)
            return None
        except Exception as error:
            self._report_failure(client, assignment, error)
            return None
        self._failures_in_a_row = 0
        try:
            verdict = report_result(client, lease, result, staged, more=not self._stopping)
        except (LeaseSuperseded, NotFound, ResultConflict) as error:
            # NotFound: the study was deleted while the fold ran.
            log.warning("result_refused", **where, reason=error.message)
            return None
        except InvalidInput as error:
            self._report_failure(client, assignment, error)
            return None
        except (Terminated, TokenRefused, TooManyRequests, Unavailable) as error:
            reason = error.message if isinstance(error, FoldwiseError) else "the coordinator does not answer"
            log.warning("result_not_handed_in", **where, reason=reason, kept=self._keep(lease, result, staged))
            raise
        except FoldwiseError as error:
            log.error("result_refused", **where, reason=error.message)
            raise
        log.info(
            "fold_done",
            **where,
            name=assignment.fold_name,
            epochs=len(result.epochs),
            seconds=round(result.provenance.seconds, 1),
            **_memory(result.provenance),
            trial_accuracy=round(verdict.trial_accuracy, 4),
            decision=verdict.decision if verdict.pruned is None else f"pruned by {verdict.pruned.rule}",
        )
        return verdict.next

    def _keep(self, lease: Lease, result: FoldResult, staged: StagedModel | None) -> str | None:
        """Keep a result for the next worker, and return where; None if it is lost with this process."""
        root = self._settings.models_root
        if staged is not None:
            return str(staged.folder)
        if root is None or not self._keeps_models:
            return None
        unreported = UnreportedResult(coordinator=self._settings.url, lease=lease, result=result)
        try:
            return str(keep_result(unreported_folder(root), unreported))
        except OSError as error:
            log.warning("result_not_kept", reason=f"{root}: {error.strerror}")
            return None

    def _release(self, client: CoordinatorClient, lease: Lease, where: Mapping[str, object]) -> None:
        try:
            client.release(lease)
        except FoldwiseError as error:
            # The fold becomes free again when its lease expires.
            log.warning("fold_not_released", **where, reason=error.message)
        else:
            log.info("fold_released", **where)

    def _train(
        self, assignment: FoldAssignment, heartbeat: HeartbeatThread
    ) -> tuple[FoldResult, StagedModel | None]:
        cache = self._open(assignment)
        last_line = time.monotonic()
        loss: float | None = None

        def on_step(progress: Progress) -> None:
            nonlocal last_line, loss
            # Most steps do not read the loss from the device.
            loss = progress.loss if progress.loss is not None else loss
            self._touch_alive_file()
            heartbeat.progress(progress.epoch, progress.step, loss)
            if heartbeat.abandoned:
                raise FoldAbandoned
            if heartbeat.drained:
                raise Terminated
            if time.monotonic() - last_line >= PROGRESS_INTERVAL_SECONDS:
                last_line = time.monotonic()
                log.info(
                    "training",
                    study=assignment.study,
                    trial=assignment.trial,
                    fold=f"{assignment.fold + 1}/{assignment.folds}",
                    epoch=f"{progress.epoch}/{assignment.training.epochs}",
                    step=progress.step,
                    loss=None if loss is None else round(loss, 4),
                )

        pretrained = self._pretrained(assignment.training.pretrained)
        revision = running_revision()
        if not assignment.trains_on_all:
            result = run_fold(
                assignment, cache, self._device, revision=revision, on_step=on_step, pretrained=pretrained
            )
            return result, None
        root = self._models_root()
        result, state = train_model(
            assignment, cache, self._device, revision=revision, on_step=on_step, pretrained=pretrained
        )
        return stage(root, assignment, cache, result, state)

    def _pretrained(self, model_id: str | None) -> PretrainedModel | None:
        if model_id is None:
            return None
        if self._model is None or self._model.card.id != model_id:
            self._model = open_pretrained(self._models_root(), model_id)
        return self._model

    def _models_root(self) -> Path:
        if self._settings.models_root is None:
            raise NotFound("this worker has no model catalogue; start it with --models", field="models")
        return self._settings.models_root

    def _report_failure(self, client: CoordinatorClient, assignment: FoldAssignment, error: Exception) -> None:
        # If the network cannot be built or trained, the trial's configuration is the cause; if files or devices
        # cannot be used, this worker's environment is.
        from_environment = is_environment_error(error)
        kind = "environment" if from_environment else "trial"
        message = error.message if isinstance(error, FoldwiseError) else f"{type(error).__name__}: {error}"
        log.error("fold_failed", trial=assignment.trial, fold=assignment.fold, kind=kind, error=message)
        try:
            client.fail(assignment.lease, Failure.model_validate({"kind": kind, "message": message[:2000]}))
        except Terminated:
            log.warning("failure_not_handed_in", reason="the coordinator does not answer")
            raise
        except (LeaseSuperseded, NotFound) as late:
            log.warning("failure_not_needed", reason=late.message)
        # The worker does not offer a failed plan again, and continues with the other plans.
        if not isinstance(error, PlanNotSound):
            self._failures_in_a_row = self._failures_in_a_row + 1 if from_environment else 0
        if self._failures_in_a_row >= MAX_ENVIRONMENT_FAILURES:
            log.error("worker_broken", failures=self._failures_in_a_row)
            kind_of_error = class_of_repeated(error)
            raise kind_of_error(
                f"{self._failures_in_a_row} consecutive folds failed on this worker: {message}"
            ) from error

    def _open(self, assignment: FoldAssignment) -> ClipCache:
        cache = self._caches.get(assignment.fingerprint)
        if cache is None:
            folder = cache_folder(self._settings.cache_root, assignment.dataset, assignment.fingerprint)
            cache = self._caches[assignment.fingerprint] = open_cache(folder)
            log.info("cache_verified", cache=f"{assignment.dataset}/{assignment.fingerprint[:12]}")
        return cache

    def _fingerprints(self) -> list[str]:
        return [manifest.fingerprint for manifest in list_caches(self._settings.cache_root)]

    def _touch_alive_file(self) -> None:
        if self._settings.alive_file is None or time.monotonic() - self._alive_at < ALIVE_INTERVAL_SECONDS:
            return
        self._alive_at = time.monotonic()
        self._settings.alive_file.touch()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        if self._interruptible:
            self._interruptible = False
            raise Terminated

    @contextlib.contextmanager
    def _interrupts(self) -> Iterator[None]:
        # A signal interrupts waiting and training at once. A result in transit is sent first, unless the
        # coordinator does not answer.
        if self._stopping:
            raise Terminated
        before, self._interruptible = self._interruptible, True
        try:
            yield
        finally:
            self._interruptible = before

    def _pause(self, seconds: float) -> None:
        with self._interrupts():
            time.sleep(seconds)


def _memory(provenance: Provenance) -> dict[str, str]:
    """The maximum memory held so far, for the log."""
    held = {"device_memory": provenance.device_memory, "host_memory": provenance.host_memory}
    return {name: f"{size >> 20} MiB" for name, size in held.items() if size is not None}
