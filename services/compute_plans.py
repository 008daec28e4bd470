"""The table of `compute: auto`: which plan a kind of device runs first, and what else decides its bits.

Nothing here is timed, so that every worker of a kind, and a replay years later, come to the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.contracts import ComputePlan, ComputeSettings, MemoryFormat, Precision, StudyPlan

TENSOR_CORES_BF16 = (8, 0)
"""Compute capability from which GPUs multiply bf16 and TF32 in their tensor cores (Ampere)."""

MAX_CPU_WORKERS = 8
"""Workers that a machine without a GPU runs at most if nobody says how many: each needs its own memory."""

THREADS = 4
"""CPU threads of a worker. A machine with more cores runs more workers: folds scale better than threads."""

Capability = tuple[int, int]
"""CUDA's compute capability, such as (9, 0)."""


def preferred_plans(capability: Capability | None, *, compiler: bool, bf16: bool) -> tuple[ComputePlan, ...]:
    """The plans that a device may run, the preferred one first. A soundness check can still veto each.

    Args:
        capability: of a GPU; None for a CPU.
        compiler: whether torch.compile works on the machine.
        bf16: whether a CPU computes in bf16; not used for a GPU.
    """
    precisions: list[Precision]
    if capability is None:
        # The CPU's own precision comes first, and compiling costs a minute that small networks do not repay.
        precisions = ["fp32", "bf16"] if bf16 else ["fp32"]
        compiled = [False, True] if compiler else [False]
        return tuple(ComputePlan(precision=p, compiled=c) for c in compiled for p in precisions)
    # GPUs before Ampere emulate bf16, and have no TF32.
    precisions = ["bf16", "tf32", "fp32"] if capability >= TENSOR_CORES_BF16 else ["fp32"]
    compiled = [True, False] if compiler else [False]
    return tuple(ComputePlan(precision=p, compiled=c) for p in precisions for c in compiled)


def choose_plan(
    settings: ComputeSettings, plans: Sequence[ComputePlan], *, on_gpu: bool, threads: int
) -> StudyPlan | None:
    """The first of these plans that the settings allow, with all that decides its bits; None if there is none.

    Args:
        settings: of the study.
        plans: that the device runs, the preferred one first.
        on_gpu: whether the device is a GPU.
        threads: CPU threads of the worker. A number in the settings comes first; it also holds for CPUs that
            join a study of a GPU.
    """
    plan = next((plan for plan in plans if settings.allow(plan)), None)
    if plan is None:
        return None
    wanted = settings.memory_format
    number = threads if settings.threads == "auto" else settings.threads
    return StudyPlan(
        precision=plan.precision,
        compiled=plan.compiled,
        memory_format=memory_format(plan, on_gpu=on_gpu) if wanted == "auto" else wanted,
        threads=None if on_gpu and settings.threads == "auto" else number,
    )


def memory_format(plan: ComputePlan, *, on_gpu: bool) -> MemoryFormat:
    """The memory format of the convolutions in a plan."""
    return "channels_last" if plan.compiled or on_gpu else "contiguous"


def min_channels(plan: ComputePlan, *, on_gpu: bool) -> int:
    """Input channels of the first convolution in a plan; missing ones are filled with zeros.

    Tensor cores take 16 bytes of channels at a time; with fewer channels a GPU multiplies without them.
    """
    return {"fp32": 1, "tf32": 4, "bf16": 8}[plan.precision] if on_gpu else 1


def default_threads(cores: int) -> int:
    """CPU threads of a worker on a machine whose processes may use this many cores."""
    return min(THREADS, max(1, cores))


def default_workers(cores: int) -> int:
    """Workers of a machine without a GPU whose processes may use this many cores."""
    return min(MAX_CPU_WORKERS, max(1, cores // THREADS))
