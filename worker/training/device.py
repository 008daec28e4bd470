"""The device that a worker trains on: made deterministic, named, and asked for its memory."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import warnings

import torch

from services.errors import InvalidInput


def choose_device(wanted: str | None) -> torch.device:
    """The device of that name, such as `cpu` or `cuda:0`; None takes a GPU where there is one.

    Raises:
        InvalidInput: no such device here.
    """
    if wanted is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InvalidInput(f"--device {wanted!r} is no torch device; write cpu or cuda:0") from error
    if device.type not in {"cpu", "cuda"}:
        raise InvalidInput(f"--device {wanted!r}: foldwise trains on cpu or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(f"--device {wanted!r}: torch sees no GPU here; write cpu or check the driver")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInput(
            f"--device {wanted!r}: torch sees {torch.cuda.device_count()} GPUs; the first is cuda:0"
        )
    return device


def make_deterministic(device: torch.device) -> None:
    """Make torch compute the same bits every time, in full fp32, for the whole process.

    Call it before anything else uses a GPU: cuBLAS reads its setting once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # CUDA's 3D pools are refused as nondeterministic because windows that overlap race for a cell in the
    # backward pass. Ours never overlap, so on CUDA the refusal is a warning, and this one is not shown.
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    if device.type == "cuda":
        warnings.filterwarnings("ignore", message="(avg|max)_pool3d_.*deterministic")
    # Filling fresh memory guards against reading it unwritten; it costs a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def keep_freed_memory() -> bool:
    """Let the C library keep memory that tensors on the CPU gave back, for the whole process.

    By default every large tensor is mapped anew and each of its pages faults in at the first touch, which
    costs a training step a third of its time. Only glibc can be told; elsewhere this changes nothing.

    Returns:
        Whether it was told.
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
    """The device as results name it: `cpu`, or such as `NVIDIA H200`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def device_with_memory(device: torch.device) -> str:
    """Name and memory, for people."""
    if device.type != "cuda":
        return device_name(device)
    gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"{device_name(device)} ({gib:.0f} GiB)"


def free_memory(device: torch.device) -> int | None:
    """Bytes free on a GPU; None for a CPU."""
    if device.type != "cuda":
        return None
    # What torch keeps for later is free for its next tensor.
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def start_counting_memory(device: torch.device) -> None:
    """Count `peak_memory` from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that tensors held on a GPU since `start_counting_memory`; None for a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def peak_host_memory() -> int:
    """Most bytes this process has ever held in main memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether torch says with this error that a GPU or the host has not enough memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and any(
            words in str(error) for words in ("not enough memory", "out of memory", "can't allocate memory")
        )
    )
