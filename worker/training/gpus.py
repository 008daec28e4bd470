"""The GPUs that torch sees: how many, why there is none, and whether one really computes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from services.errors import MachineUnusable

MAX_RELATIVE_ERROR = 0.01
"""Maximum difference between a GPU's result and the CPU's, relative to the largest value. TF32 gives 0.001."""

_DRIVER_VERSION = Path("/sys/module/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class GpuProblem:
    """Why a GPU cannot be used, and what to do about it."""

    cause: str
    fix: str

    def __str__(self) -> str:
        return f"{self.cause}; {self.fix}"


@dataclass(frozen=True, kw_only=True)
class NoGpu(GpuProblem):
    """Why torch sees no GPU."""

    is_fault: bool
    """Whether something is broken; a machine without a GPU is not."""


def visible_gpus() -> int:
    """Number of GPUs that torch can use. It allocates no memory on a GPU."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def why_no_gpu() -> NoGpu:
    """Why `visible_gpus` is 0, from what torch says when CUDA is started."""
    if torch.version.cuda is None and torch.version.hip is None:
        return NoGpu(
            cause=f"torch {torch.__version__} is built without CUDA",
            fix="install a torch build for CUDA",
            is_fault=driver_version() is not None,
        )
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        return _reason_of(_first_line(error))
    return NoGpu(cause="torch saw no GPU at first, and now starts CUDA", fix="start this again", is_fault=True)


def check_gpu(device: torch.device) -> None:
    """Make a GPU the process's current one and check that it computes correctly.

    In a worker call this after `make_deterministic`, which must come before the first use of a GPU.

    Raises:
        MachineUnusable: as `find_problem` says.
    """
    problem = find_problem(device)
    if problem is not None:
        raise MachineUnusable(str(problem))


def find_problem(device: torch.device) -> GpuProblem | None:
    """Train one small step on a GPU, which becomes the process's current one, and compare it with the CPU.

    Returns:
        None if the GPU is good. Otherwise: it does not start, torch has no kernels for it, no kernel runs, or
        its results are wrong.
    """
    look = "check it with nvidia-smi, or use another GPU"
    try:
        name = f"{device} ({torch.cuda.get_device_name(device)})"
        capability = torch.cuda.get_device_capability(device)
    except RuntimeError as error:
        return GpuProblem(cause=f"{device} does not start: {_first_line(error)}", fix=look)
    built_for = torch.cuda.get_arch_list()
    if torch.version.hip is None and not has_kernels_for(capability, built_for):
        return GpuProblem(
            cause=f"{name} has compute capability {capability[0]}.{capability[1]}, and torch "
            f"{torch.__version__} has kernels for {', '.join(built_for)} only",
            fix="use another GPU, or install a torch build for this one",
        )
    try:
        # Without this, torch's helpers would also reserve memory on cuda:0.
        torch.cuda.set_device(device)
        computed = _train_small_step(device)
    except RuntimeError as error:
        return GpuProblem(cause=f"{name} runs no kernel: {_first_line(error)}", fix=look)
    errors = map(_relative_error, computed, _train_small_step(torch.device("cpu")))
    # A comparison with an error that is not finite is false.
    wrong = [error for error in errors if not error <= MAX_RELATIVE_ERROR]
    if wrong:
        return GpuProblem(
            cause=f"{name} computes wrong results: a small training step differs from the CPU's by "
            f"{wrong[0]:.2g} of the largest value",
            fix="replace the GPU, or use another",
        )
    return None


def describe_gpu(device: torch.device) -> str:
    """Name and compute capability of a GPU, NVIDIA's driver, and the CUDA that torch is built for."""
    major, minor = torch.cuda.get_device_capability(device)
    return (
        f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}, driver "
        f"{driver_version() or 'unknown'}, torch {torch.__version__} for CUDA {torch.version.cuda}"
    )


def has_kernels_for(capability: tuple[int, int], built_for: Iterable[str]) -> bool:
    """Whether a torch build has kernels for a GPU of this compute capability.

    Args:
        capability: major and minor number.
        built_for: targets of the build, such as `sm_90` (machine code, runs on this and higher minor numbers),
            `sm_90a` (runs on this one only), `sm_100f` (like sm_100) or `compute_90` (compiled by the driver
            for this or any higher capability).
    """
    for target in built_for:
        parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", target)
        if parts is None:
            continue
        kind, suffix = parts[1], parts[4]
        wanted = (int(parts[2]), int(parts[3]))
        if suffix == "a":
            fits = capability == wanted
        elif kind == "compute" and not suffix:
            fits = capability >= wanted
        else:
            fits = capability[0] == wanted[0] and capability >= wanted
        if fits:
            return True
    return False


def driver_version() -> str | None:
    """Version of NVIDIA's kernel driver, such as `580.65.06`; None if none is loaded."""
    try:
        return _DRIVER_VERSION.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _reason_of(said: str) -> NoGpu:
    """The reason in torch's message."""
    if "no NVIDIA driver" in said:
        return NoGpu(
            cause="torch sees no GPU, because this machine has no NVIDIA driver",
            fix="install NVIDIA's driver; in a pod, request a GPU in worker.resources.limits",
            is_fault=False,
        )
    if found := re.search(r"driver on your system is too old \(found version (\d+)\)", said):
        major, minor = divmod(int(found[1]) // 10, 100)
        return NoGpu(
            cause=f"NVIDIA's driver {driver_version() or 'here'} supports CUDA up to {major}.{minor}, and "
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda}",
            fix="update the driver, or install a torch build for an older CUDA",
            is_fault=True,
        )
    if "No CUDA GPUs are available" in said:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return NoGpu(
            cause="torch sees no GPU" + (f": CUDA_VISIBLE_DEVICES is {hidden!r}" if hidden is not None else ""),
            fix="attach a GPU to this machine or pod, or correct CUDA_VISIBLE_DEVICES",
            is_fault=hidden is None,
        )
    return NoGpu(cause=f"CUDA does not start: {said}", fix="check the GPU with nvidia-smi", is_fault=True)


def _train_small_step(device: torch.device) -> list[Tensor]:
    """A 3D convolution and a matrix product, forward and backward: the output and all gradients, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"clips": (2, 1, 4, 16, 16), "filters": (4, 1, 3, 3, 3), "matrix": (4 * 4 * 16 * 16, 8)}
    clips, filters, matrix = (
        torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes.values()
    )
    output = F.conv3d(clips, filters, padding=1).relu().flatten(1) @ matrix
    output.square().mean().backward()  # type: ignore[no-untyped-call]
    return [part.detach().cpu() for part in (output, clips.grad, filters.grad, matrix.grad) if part is not None]


def _relative_error(computed: Tensor, expected: Tensor) -> float:
    return float((computed - expected).abs().max() / expected.abs().max())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
