"""The compute plans: which of them a device can run, how to run one, and whether it is sound."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from services.contracts import ComputePlan

Precision = Literal["fp32", "tf32", "bf16"]

PLAIN = ComputePlan()

TOLERANCES: dict[Precision, tuple[float, float]] = {
    "fp32": (1e-3, 0.02),
    "tf32": (0.01, 0.1),
    "bf16": (0.05, 0.3),
}
"""Relative errors of logits and of the gradient against plain fp32 that a sound plan stays within, as the
median over batches. Rounding to bf16 gives about 0.01 and 0.1 on networks of this kind; a wrong kernel 1."""

NOT_FINITE_ALLOWED = 0.25
"""Share of batches whose gradient may be not finite: such a step is done again in fp32."""

CHECKED_BATCHES = 12


@dataclass(frozen=True, kw_only=True)
class Soundness:
    """How far a plan is from plain fp32 on this device; medians over batches of relative errors."""

    logits_error: float
    gradient_error: float
    not_finite: float
    """Share of batches with a gradient that is not finite."""

    sound: bool


def possible_plans(device: torch.device) -> tuple[ComputePlan, ...]:
    """The plans that a device has the means for; whether they are sound shows when they are tried."""
    precisions: list[Precision] = ["fp32"]
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            precisions += ["tf32", "bf16"]
    elif torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        precisions.append("bf16")
    compiled = [False, True] if _has_compiler(device) else [False]
    return tuple(ComputePlan(precision=p, compiled=c) for c, p in product(compiled, precisions))


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Within it, a GPU multiplies in TF32 or in full fp32; for bf16, forward passes need `autocast` too."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass; weights and what is summed over many values stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def gradients_finite(parameters: Sequence[Tensor]) -> bool:
    """Whether no gradient has an infinity or a NaN; waits for the device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch._foreach_norm(gradients)
    return bool(torch.stack(norms).isfinite().all())


def remember_statistics(model: nn.Module) -> Callable[[], None]:
    """A function that sets a model's running statistics back to what they are now."""
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
    """Compare a plan with plain fp32: output and gradients of the same weights on the same batches.

    Between two batches the weights move by an fp32 step, so that more than the initial weights are seen.

    Args:
        model: the network, trained by this call.
        forward: the same network as the plan runs it, compiled or not, in `autocast` where it needs that.
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
    # A NaN is above every tolerance only if it is asked the other way round.
    sound = logits_error <= tolerated[0] and gradient_error <= tolerated[1] and share <= NOT_FINITE_ALLOWED
    return Soundness(logits_error=logits_error, gradient_error=gradient_error, not_finite=share, sound=sound)


def _gradient(
    forward: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    clips: Tensor,
    labels: Tensor,
    precision: Precision,
    seed: int,
) -> tuple[Tensor, Tensor]:
    # The same dropout in both.
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
    # So that a median over errors is one over numbers.
    return float("inf") if math.isnan(error) else error


def _has_compiler(device: torch.device) -> bool:
    wanted = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "c++", "clang++"]
    found = any(shutil.which(name) for name in wanted)
    return found and (device.type == "cpu" or importlib.util.find_spec("triton") is not None)
