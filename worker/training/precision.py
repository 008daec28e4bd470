"""Compute plans: which of them a device supports, how to run one, and whether its results are sound."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from services.compute_plans import preferred_plans
from services.contracts import ComputePlan, Precision

PLAIN = ComputePlan()

TOLERANCES: dict[Precision, tuple[float, float]] = {
    "fp32": (1e-3, 0.02),
    "tf32": (0.01, 0.1),
    "bf16": (0.05, 0.3),
}
"""Maximum relative errors of logits and of the gradient against plain fp32, as the median over batches.
Rounding to bf16 gives about 0.01 and 0.1 on networks of this kind; a wrong kernel gives 1."""

MAX_NOT_FINITE_SHARE = 0.25
"""Maximum share of batches (0 to 1) whose gradient is not finite; training repeats such a step in fp32."""

CHECKED_BATCHES = 12
"""Batches that a check compares."""


@dataclass(frozen=True, kw_only=True)
class Soundness:
    """How far a plan is from plain fp32 on this device: relative errors, as medians over batches."""

    logits_error: float
    gradient_error: float
    not_finite: float
    """Share of batches with a gradient that is not finite (0 to 1)."""

    sound: bool


def possible_plans(device: torch.device) -> tuple[ComputePlan, ...]:
    """The plans that a device supports, the preferred one first. Whether one is sound, only a check shows."""
    return preferred_plans(
        torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        compiler=_has_compiler(device),
        bf16=torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    )


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Context in which a GPU multiplies in TF32 or full fp32. For bf16, forward passes also need `autocast`."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass; weights and sums over many values stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def gradients_finite(parameters: Sequence[Tensor]) -> Tensor:
    """Whether no gradient has an infinity or a NaN: a scalar on the device, which this does not wait for."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch._foreach_norm(gradients)
    return torch.stack(norms).isfinite().all()


def remember_statistics(model: nn.Module) -> Callable[[], None]:
    """A function that restores the model's present running statistics."""
    before = [buffer.clone() for buffer in model.buffers()]

    def undo() -> None:
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)

    return undo


def check_soundness(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    batches: Sequence[tuple[Tensor, Tensor]],
    precision: Precision,
) -> Soundness:
    """Compare a plan with plain fp32: outputs and gradients of the same weights on the same batches.

    An fp32 step between two batches moves the weights, so that not only the initial weights are compared.

    Args:
        model: the network; this call trains it.
        forward: the same network as the plan runs it: compiled or not, in `autocast` if the plan needs it.
        batches: clips and labels, on the device.
        precision: of the plan.
    """
    model.train()
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-4)
    logits_errors, gradient_errors, not_finite = [], [], 0
    for seed, (clips, labels) in enumerate(batches):
        undo = remember_statistics(model)
        logits, gradient = _gradient(forward, parameters, clips, labels, precision, seed)
        undo()
        exact_logits, exact_gradient = _gradient(model, parameters, clips, labels, "fp32", seed)
        optimizer.step()
        not_finite += not bool(gradient.isfinite().all())
        logits_errors.append(_relative_error(logits, exact_logits))
        gradient_errors.append(_relative_error(gradient, exact_gradient))
    logits_error, gradient_error = statistics.median(logits_errors), statistics.median(gradient_errors)
    share = not_finite / len(batches)
    tolerated = TOLERANCES[precision]
    # `<=` and not `>`: a NaN must count as above every tolerance.
    sound = logits_error <= tolerated[0] and gradient_error <= tolerated[1] and share <= MAX_NOT_FINITE_SHARE
    return Soundness(logits_error=logits_error, gradient_error=gradient_error, not_finite=share, sound=sound)


def _gradient(
    forward: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    clips: Tensor,
    labels: Tensor,
    precision: Precision,
    seed: int,
) -> tuple[Tensor, Tensor]:
    # The same dropout in both passes.
    torch.manual_seed(seed)
    for parameter in parameters:
        parameter.grad = None
    with arithmetic(precision):
        logits = forward(clips)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in parameters if p.grad is not None]
    return logits.detach().float(), torch.cat([gradient.flatten() for gradient in gradients])


def _relative_error(value: Tensor, exact: Tensor) -> float:
    error = ((value - exact).norm() / exact.norm()).item()
    # A median needs numbers that can be ordered.
    return float("inf") if math.isnan(error) else error


def _has_compiler(device: torch.device) -> bool:
    wanted = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "c++", "clang++"]
    found = any(shutil.which(name) for name in wanted)
    return found and (device.type == "cpu" or importlib.util.find_spec("triton") is not None)
