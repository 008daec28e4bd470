"""A worker's life: claim a fold, train and evaluate it, report it, get the next one in the same reply."""

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
import torch

from client.connection import Connection
from services.clip_cache import ClipCache, cache_folder, list_caches, open_cache
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
    WorkerDrained,
)
from services.model_catalogue import StagedModel
from services.revision import running_revision
from worker.coordinator_client import CoordinatorClient
from worker.final_models import can_keep_models, finish_staged, hand_in, stage
from worker.heartbeat import HeartbeatThread
from worker.settings import WorkerSettings
from worker.training.device import choose_device, device_name, keep_freed_memory, make_deterministic
from worker.training.engine import Engine
from worker.training.fit import Progress, run_fold, train_model
from worker.training.pretrained import PretrainedModel, open_pretrained

log = structlog.get_logger()

ALIVE_SECONDS = 5.0
"""The file that says so is touched no more often."""

PROGRESS_SECONDS = 10.0
"""At most one progress line in so many seconds."""

ENVIRONMENT_FAILURES_ALLOWED = 3
"""So many folds in a row that failed through this worker's own fault end it."""


class Terminated(BaseException):
    """SIGTERM, Ctrl-C, or drained: give the fold back and end."""


class FoldAbandoned(Exception):
    """The coordinator wants no more of this fold."""


class Worker:
    """Runs folds one after another until its study is over or it is told to end."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._engine = Engine(choose_device(settings.device), measurements=settings.measurements)
        self._caches: dict[str, ClipCache] = {}
        self._model: PretrainedModel | None = None
        self._keeps_models = can_keep_models(settings.models_root)
        self._stopping = False
        self._interruptible = False
        self._failures_in_a_row = 0
        self._alive_at = -ALIVE_SECONDS

    def run(self) -> int:
        """Work until there is no more to do; the exit code of the process.

        Raises:
            FoldwiseError: the token is refused, the cache does not match, the coordinator is gone for good.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if self._settings.threads is not None:
            torch.set_num_threads(self._settings.threads)
        device = self._engine.device
        make_deterministic(device)
        name = device_name(device)
        if device.type == "cpu":
            keep_freed_memory()
            log.warning("no_gpu", note="training on the CPU", threads=torch.get_num_threads())
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
            except Terminated:
                log.info("worker_stopped")
                return EXIT_TRY_AGAIN

    def _work(self, client: CoordinatorClient) -> NoReturn:
        assignment: FoldAssignment | None = None
        if self._settings.models_root is not None and self._keeps_models:
            with self._interrupts():
                finish_staged(client, self._settings.models_root)
        while True:
            if self._stopping:
                raise Terminated
            self._note_alive()
            if assignment is None:
                # A claim whose reply came too late was answered with a lease that has lapsed: claim again.
                with self._interrupts(), contextlib.suppress(LeaseSuperseded):
                    assignment = client.claim(
                        study=self._settings.study,
                        caches=self._fingerprints(),
                        plans=self._engine.plans,
                        keeps_models=self._keeps_models,
                    )
                continue
            assignment = self._run_one(client, assignment)

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
            verdict = hand_in(client, lease, result, staged, more=not self._stopping)
        except Terminated:
            log.warning("result_not_handed_in", **where, reason="the coordinator does not answer")
            raise
        except (LeaseSuperseded, NotFound, ResultConflict) as error:
            # Not found: the study was deleted meanwhile.
            log.warning("result_refused", **where, reason=error.message)
            return None
        except InvalidInput as error:
            self._report_failure(client, assignment, error)
            return None
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

    def _release(self, client: CoordinatorClient, lease: Lease, where: Mapping[str, object]) -> None:
        try:
            client.release(lease)
        except FoldwiseError as error:
            # The lease lapses by itself.
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
            # Not every step reads the loss back from the device.
            loss = progress.loss if progress.loss is not None else loss
            self._note_alive()
            heartbeat.progress(progress.epoch, progress.step, loss)
            if heartbeat.abandoned:
                raise FoldAbandoned
            if heartbeat.drained:
                raise Terminated
            if time.monotonic() - last_line >= PROGRESS_SECONDS:
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
                assignment, cache, self._engine, revision=revision, on_step=on_step, pretrained=pretrained
            )
            return result, None
        root = self._models_root()
        result, state = train_model(
            assignment, cache, self._engine, revision=revision, on_step=on_step, pretrained=pretrained
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
        # The configuration is at fault where the network cannot be built or trained; files and devices
        # that cannot be used are this worker's own trouble.
        own = _is_own_trouble(error)
        kind = "environment" if own else "trial"
        message = error.message if isinstance(error, FoldwiseError) else f"{type(error).__name__}: {error}"
        log.error("fold_failed", trial=assignment.trial, fold=assignment.fold, kind=kind, error=message)
        try:
            client.fail(assignment.lease, Failure.model_validate({"kind": kind, "message": message[:2000]}))
        except Terminated:
            log.warning("failure_not_handed_in", reason="the coordinator does not answer")
            raise
        except (LeaseSuperseded, NotFound) as late:
            log.warning("failure_not_needed", reason=late.message)
        # A plan that is refused is not offered again; the worker goes on with the others.
        if not isinstance(error, PlanNotSound):
            self._failures_in_a_row = self._failures_in_a_row + 1 if own else 0
        if self._failures_in_a_row >= ENVIRONMENT_FAILURES_ALLOWED:
            log.error("worker_broken", failures=self._failures_in_a_row)
            # A cache that does not match stays an error of its own: no restart of the worker mends it.
            kind_of_error = CacheMismatch if isinstance(error, CacheMismatch) else FoldwiseError
            raise kind_of_error(f"{self._failures_in_a_row} folds in a row failed on this worker: {message}")

    def _open(self, assignment: FoldAssignment) -> ClipCache:
        cache = self._caches.get(assignment.fingerprint)
        if cache is None:
            folder = cache_folder(self._settings.cache_root, assignment.dataset, assignment.fingerprint)
            cache = self._caches[assignment.fingerprint] = open_cache(folder)
            log.info("cache_verified", cache=f"{assignment.dataset}/{assignment.fingerprint[:12]}")
        return cache

    def _fingerprints(self) -> list[str]:
        return [manifest.fingerprint for manifest in list_caches(self._settings.cache_root)]

    def _note_alive(self) -> None:
        if self._settings.alive_file is None or time.monotonic() - self._alive_at < ALIVE_SECONDS:
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
        # A signal ends waiting and training at once; a result on its way is finished first, if it is answered.
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


def _is_own_trouble(error: Exception) -> bool:
    own = OSError | MemoryError | CacheMismatch | PlanNotSound | NotFound | torch.AcceleratorError
    if isinstance(error, own):
        return True
    # Older libraries report a sick GPU as a plain RuntimeError; it says who speaks.
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("CUDA error", "cuDNN error", "CUBLAS_STATUS")
    )


def _memory(provenance: Provenance) -> dict[str, str]:
    """The most memory held so far, for the log."""
    held = {"device_memory": provenance.device_memory, "host_memory": provenance.host_memory}
    return {name: f"{size >> 20} MiB" for name, size in held.items() if size is not None}
