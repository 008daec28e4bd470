"""GPUs and their data sheets: peak rates without sparsity, and the memory that torch sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.compute_plans import preferred_plans
from services.contracts import ComputePlan, ComputeSettings
from services.errors import NotFound


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Peak rates in TFLOP/s, None if the GPU lacks the precision; memory in GiB, rounded down."""

    name: str
    memory: int
    fp32: float
    tf32: float | None = None
    bf16: float | None = None

    @property
    def chip(self) -> str:
        """The part of the name that identifies the chip, such as `A100`."""
        return next(word for word in self.name.split("-") if any(map(str.isdigit, word)))

    def peak(self, plan: ComputePlan) -> float | None:
        """Peak operations per second in a compute plan's precision; None if the GPU lacks it."""
        rate = {"fp32": self.fp32, "tf32": self.tf32, "bf16": self.bf16}[plan.precision]
        return None if rate is None else rate * 1e12

    def plan(self, settings: ComputeSettings) -> ComputePlan | None:
        """The plan that this GPU would run first, of those that the settings allow; None if it runs none."""
        capability = (8, 0) if self.bf16 is not None else (7, 0)
        plans = preferred_plans(capability, compiler=True, bf16=True)
        return next((plan for plan in plans if settings.allow(plan)), None)


GPUS = (
    Gpu(name="T4", memory=14, fp32=8.1),
    Gpu(name="V100-16GB", memory=15, fp32=15.7),
    Gpu(name="V100-32GB", memory=31, fp32=15.7),
    Gpu(name="RTX-3090", memory=23, fp32=35.6, tf32=35.6, bf16=71.0),
    Gpu(name="RTX-4090", memory=23, fp32=82.6, tf32=82.6, bf16=165.2),
    Gpu(name="L4", memory=22, fp32=30.3, tf32=60.0, bf16=121.0),
    Gpu(name="L40S", memory=44, fp32=91.6, tf32=183.0, bf16=362.0),
    Gpu(name="A100-40GB", memory=39, fp32=19.5, tf32=156.0, bf16=312.0),
    Gpu(name="A100-80GB", memory=79, fp32=19.5, tf32=156.0, bf16=312.0),
    Gpu(name="H100", memory=78, fp32=67.0, tf32=494.0, bf16=989.0),
    Gpu(name="H200", memory=139, fp32=67.0, tf32=494.0, bf16=989.0),
)

DEFAULT_GPUS = ("T4", "V100-16GB", "A100-40GB", "H100", "H200")
"""GPUs to forecast for if the user names none."""


def find_gpus(names: Sequence[str]) -> list[Gpu]:
    """Find GPUs by name, ignoring case.

    Raises:
        NotFound: a name is unknown; the message lists the known ones.
    """
    known = {gpu.name.lower(): gpu for gpu in GPUS}
    for name in names:
        if name.lower() not in known:
            raise NotFound(
                f"--gpu {name!r} is unknown; known are {', '.join(gpu.name for gpu in GPUS)}; measure "
                "another GPU with --calibrate",
                field="gpu",
            )
    return [known[name.lower()] for name in names]


def gpu_of_device(device: str) -> Gpu | None:
    """Find a GPU by its name in torch, such as `NVIDIA H100 80GB HBM3`; None if it is not in the list.

    If a chip exists with two memory sizes, return the smaller one.
    """
    words = device.lower().replace("-", " ").split()
    return next((gpu for gpu in GPUS if gpu.chip.lower() in words), None)
