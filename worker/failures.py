"""Failures of folds: whether this worker's environment is the cause, and how a worker ends that repeats one."""

from __future__ import annotations

import torch

from services.errors import CacheMismatch, FoldwiseError, MachineUnusable, NotFound, PlanNotSound


def is_environment_error(error: Exception) -> bool:
    """Whether files or devices of this worker caused an error, rather than the trial's configuration."""
    environment = OSError | MemoryError | CacheMismatch | PlanNotSound | NotFound | torch.AcceleratorError
    if isinstance(error, environment):
        return True
    # Older libraries report a failing GPU as a plain RuntimeError with the library's name in its message.
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("CUDA error", "cuDNN error", "CUBLAS_STATUS")
    )


def class_of_repeated(error: Exception) -> type[FoldwiseError]:
    """The class, and with it the exit code, with which a worker ends that meets this error in every fold."""
    if isinstance(error, CacheMismatch):
        return type(error)
    # The catalogue or the model is missing, on another machine too.
    return FoldwiseError if isinstance(error, NotFound) else MachineUnusable
