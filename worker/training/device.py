"""A torch device: choose it, make it deterministic, name it, read its memory."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
import warnings

import torch

from services.errors import InvalidInput, MachineUnusable
from worker.training.gpus import visible_gpus, why_no_gpu

_TOO_LITTLE_MEMORY = re.compile(
    r"not enough memory|out[ _]?of[ _]?memory|can(no|')t allocate memory|ErrorMemoryAllocation"
    r"|_?ALLOC(ATION)?_?FAILED|rocblas_status_memory_error",
    re.IGNORECASE,
)
"""What CUDA, HIP and their libraries write if memory is missing."""


def choose_device(wanted: str | None, *, require_gpu: bool = False) -> torch.device:
    """The device of this name, such as `cpu` or `cuda:0`; None takes the first GPU, or else the CPU.

    Args:
        wanted: a torch device.
        require_gpu: whether the CPU is no choice.

    Raises:
        InvalidInput: this is no device that foldwise trains on, or it is the CPU and `require_gpu` is set.
        MachineUnusable: this machine has no such GPU.
    """
    if wanted is None:
        if visible_gpus() > 0:
            return torch.device("cuda:0")
        if require_gpu:
            raise MachineUnusable(f"a GPU is required (--require-gpu): {why_no_gpu()}", field="require_gpu")
        return torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InvalidInput(f"--device {wanted!r} is not a torch device; write cpu or cuda:0") from error
    if device.type not in {"cpu", "cuda"}:
        raise InvalidInput(f"--device {wanted!r}: foldwise trains on cpu or cuda:N")
    if device.type == "cpu":
        if require_gpu:
            raise InvalidInput(
                f"--device is {wanted!r}, but --require-gpu (FOLDWISE_REQUIRE_GPU) is set; remove one of them",
                field="device",
            )
        return device
    count = visible_gpus()
    if count == 0:
        raise MachineUnusable(f"--device {wanted!r}: {why_no_gpu()}", field="device")
    if (device.index or 0) >= count:
        raise MachineUnusable(
            f"--device {wanted!r}: torch sees {count} {'GPU' if count == 1 else 'GPUs'} here, the last is "
            f"cuda:{count - 1}; use one of them",
            field="device",
        )
    return torch.device("cuda", device.index or 0)


def make_deterministic(device: torch.device) -> None:
    """Make torch compute the same bits every time, in full fp32, in the whole process.

    Call this before anything else uses a GPU: cuBLAS reads its setting once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # torch rejects CUDA's 3D pools as nondeterministic, because overlapping windows race for a cell in the
    # backward pass. Our windows never overlap, so on CUDA we ask for a warning instead and hide it.
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    if device.type == "cuda":
        warnings.filterwarnings("ignore", message="(avg|max)_pool3d_.*deterministic")
    # Filling fresh memory would protect against reading it unwritten, but costs a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed CPU tensors, in the whole process.

    By default each large tensor gets newly mapped memory, and every page of it faults at the first access,
    which takes a third of the time of a training step. Only glibc has this setting; with another C library
    nothing changes.

    Returns:
        Whether the setting was made.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    return all(
        mallopt(option, value) == 1
        for option, value in ((mmap_max, 0), (trim_threshold, -1), (top_pad, 64 << 20), (arena_max, 1))
    )


def device_name(device: torch.device) -> str:
    """The device's name in results: `cpu`, or for example `NVIDIA H200`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def device_with_memory(device: torch.device) -> str:
    """The device's name and memory, for messages."""
    if device.type != "cuda":
        return device_name(device)
    gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"{device_name(device)} ({gib:.0f} GiB)"


def free_memory(device: torch.device) -> int | None:
    """Free bytes on a GPU; None for a CPU."""
    if device.type != "cuda":
        return None
    # The memory that torch caches is free for its next tensor.
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def start_counting_memory(device: torch.device) -> None:
    """Reset `peak_memory`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Maximum bytes that tensors held on a GPU since `start_counting_memory`; None for a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def peak_host_memory() -> int:
    """Maximum bytes that this process has held in main memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queue; nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this error of torch says that a GPU or the host has too little memory.

    Libraries below torch (cuDNN, cuBLAS, cuSPARSE, cuSOLVER, cuFFT and their HIP counterparts) allocate memory
    themselves. They report a lack of it as a status of their own, in a plain RuntimeError.
    """
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _TOO_LITTLE_MEMORY.search(str(error)) is not None
    )
