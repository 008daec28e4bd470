"""A worker's device and what it keeps from fold to fold: clips, and one compiled network."""

from __future__ import annotations

import time
from collections.abc import Hashable

import structlog
import torch

from services.clip_cache import ClipCache
from services.compute_plans import choose_plan
from services.contracts import ComputePlan, ComputeSettings, FoldTask, StudyPlan
from services.errors import PlanNotSound
from worker.training.clips import Batches, ClipSet, ClipStore
from worker.training.device import device_name, ran_out_of_memory
from worker.training.network import Network, NetworkSettings
from worker.training.precision import (
    CHECKED_BATCHES,
    PLAIN,
    Soundness,
    check_soundness,
    possible_plans,
)

log = structlog.get_logger()


class TrainingDevice:
    """One per worker process."""

    def __init__(self, device: torch.device, *, threads: int | None = None) -> None:
        """Start with no clips and no network.

        Args:
            device: the torch device to train on.
            threads: CPU threads of folds whose task names none; None leaves the number to torch.
        """
        self.torch_device = device
        self.clips = ClipStore()
        self.plans = possible_plans(device)
        """Compute plans that this worker offers, the preferred one first; without those that fail a check."""

        self.compilations = 0
        """Networks compiled so far."""

        self.checks: dict[Hashable, Soundness] = {}
        """What the checks of plans found, by `NetworkSettings.check_key`."""

        self._threads = threads or torch.get_num_threads()
        self._network: Network | None = None

    def choose_plan(self, settings: ComputeSettings) -> StudyPlan:
        """The plan of a study that this device is the first to serve.

        Raises:
            PlanNotSound: the device runs nothing that the settings allow.
        """
        on_gpu = self.torch_device.type == "cuda"
        plan = choose_plan(settings, self.plans, on_gpu=on_gpu, threads=self._threads)
        if plan is None:
            raise PlanNotSound(
                f"{device_name(self.torch_device)} runs none of the plans that compute allows (it runs "
                f"{'; '.join(map(str, self.plans))}); set compute=auto, or use another device",
                field="compute",
            )
        return plan

    def clip_set(self, task: FoldTask, cache: ClipCache) -> ClipSet:
        """The clips that a task trains and tests on, with their copies."""
        return self.clips.get(
            cache,
            clahe=task.hyperparameters.clahe,
            study_seed=task.study_seed,
            augmentation=task.training.augmentation,
            device=self.torch_device,
        )

    def use_threads(self, threads: int | None) -> None:
        """Train with this number of CPU threads, in the whole process; None means the worker's own number."""
        if self.torch_device.type == "cpu":
            torch.set_num_threads(threads or self._threads)

    def network(self, settings: NetworkSettings, batches: Batches, *, seed: int) -> Network:
        """The network of a fold with its initial weights, ready to train.

        A plan other than plain fp32 is checked against plain fp32 first, once per architecture and range of
        pixels.

        Args:
            settings: what the network is built for.
            batches: the fold's clips, to check with.
            seed: of the initial weights.

        Raises:
            PlanNotSound: this device does not support the compute plan, or computes wrong results with it.
        """
        if settings.compute not in self.plans:
            raise PlanNotSound(
                f"{device_name(self.torch_device)} does not support {settings.compute}; use another device, or "
                "compute=auto",
                field="compute",
            )
        try:
            network = self._get_or_build(settings, seed)
            if settings.compute != PLAIN and settings.check_key() not in self.checks:
                self._check(network, batches)
                # The check has trained it.
                network.begin(settings, seed)
        except RuntimeError as error:
            if not (settings.compute.compiled and _compiler_failed(error)) or ran_out_of_memory(error):
                raise
            reason = f"torch.compile fails: {str(error).strip().splitlines()[0]}"
            refused = self._withdraw_plan(settings.compute, reason)
            # The compiler is the same in every precision.
            self.plans = tuple(plan for plan in self.plans if not plan.compiled)
            raise refused from error
        return network

    def forget_network(self) -> None:
        """Free the memory of the network kept from the last fold."""
        self._network = None
        if self.torch_device.type == "cuda":
            torch.cuda.empty_cache()

    def _get_or_build(self, settings: NetworkSettings, seed: int) -> Network:
        """The network for these settings with the weights of the seed."""
        if self._network is not None and self._network.settings.code_key() == settings.code_key():
            self._network.begin(settings, seed)
            return self._network
        # Two networks may not fit the device together.
        self.forget_network()
        self._network = Network(settings, seed=seed, device=self.torch_device)
        if settings.compute.compiled:
            self.compilations += 1
            log.info("network_compiled", plan=str(settings.compute), compilations=self.compilations)
        return self._network

    def _check(self, network: Network, batches: Batches) -> None:
        settings = network.settings
        started = time.perf_counter()
        checked = [batches.random(settings.batch_size, number) for number in range(CHECKED_BATCHES)]
        found = check_soundness(network.model, network, checked, settings.compute.precision)
        self.checks[settings.check_key()] = found
        log.info(
            "plan_checked",
            precision=settings.compute.precision,
            compiled=settings.compute.compiled,
            logits_error=float(f"{found.logits_error:.2g}"),
            gradient_error=float(f"{found.gradient_error:.2g}"),
            not_finite=found.not_finite,
            sound=found.sound,
            seconds=round(time.perf_counter() - started, 1),
        )
        if not found.sound:
            raise self._withdraw_plan(
                settings.compute,
                f"logits differ from fp32 by {found.logits_error:.2g}, gradients by "
                f"{found.gradient_error:.2g}, {found.not_finite:.0%} of batches not finite",
            )

    def _withdraw_plan(self, plan: ComputePlan, reason: str) -> PlanNotSound:
        """Stop offering a plan; the error to raise for it."""
        self.plans = tuple(offered for offered in self.plans if offered != plan)
        return PlanNotSound(
            f"{device_name(self.torch_device)} with torch {torch.__version__} does not run {plan} "
            f"soundly: {reason}; use another device, or compute=auto",
            field="compute",
        )


def _compiler_failed(error: RuntimeError) -> bool:
    # Importing the compiler takes seconds; after an error of a compiled plan it is imported already.
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
