"""GPUs and their data sheets: peak rates without sparsity, the memory that torch sees, and slices of a GPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from services.compute_plans import preferred_plans
from services.contracts import ComputeSettings, Precision
from services.errors import NotFound
from worker.training.gpus import has_kernels_for

COMPUTE_SLICES = 7
MEMORY_SLICES = 8
"""Parts that MIG divides a GPU's multiprocessors and its memory into."""

SLICE_MEMORY = 0.9
"""Share of its part of the memory that a slice offers at least; the driver keeps the rest."""

_PROFILE = re.compile(r"\s+MIG\s+(?:(?P<own>\d)c\.)?(?P<slices>\d)g\.(?P<gb>\d+)gb\S*$", re.IGNORECASE)
"""A slice in torch's names: `MIG 1g.18gb`, or `MIG 1c.3g.40gb` for one of the slice's three parts."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Peak rates in TFLOP/s, None if the GPU lacks the precision."""

    name: str
    memory: float
    """GiB that torch sees, rounded down."""

    capability: tuple[int, int]
    """Major and minor compute capability, which decides the kernels that it can run."""

    fp32: float
    tf32: float | None = None
    bf16: float | None = None
    share: float = 1.0
    """Share of the whole GPU's multiprocessors (0 to 1); below 1 for a MIG slice. The rates are the slice's."""

    @property
    def chip(self) -> str:
        """The part of the name that identifies the chip, such as `A100`."""
        return next(word for word in self.name.split("-") if any(map(str.isdigit, word)))

    def peak(self, precision: Precision) -> float | None:
        """Peak operations per second in this precision; None if the GPU lacks it."""
        rate = {"fp32": self.fp32, "tf32": self.tf32, "bf16": self.bf16}[precision]
        return None if rate is None else rate * 1e12

    def precisions(self, settings: ComputeSettings) -> list[Precision]:
        """The precisions that the GPU has and the settings allow, the one that a study would take first."""
        plans = preferred_plans(self.capability, compiler=True, bf16=True)
        return list(dict.fromkeys(plan.precision for plan in plans if settings.allow(plan)))

    def runs_kernels_of(self, architectures: Sequence[str]) -> bool:
        """Whether the GPU can run code that was compiled for one of these architectures.

        Args:
            architectures: as `torch.cuda.get_arch_list()` gives them, such as `sm_90` or `compute_120`. True if
                none of them is NVIDIA's, as in a build of torch for CPUs, which tells nothing.
        """
        built_for = [name for name in architectures if name.startswith(("sm_", "compute_"))]
        return not built_for or has_kernels_for(self.capability, built_for)


GPUS = (
    Gpu(name="T4", memory=14.5, capability=(7, 5), fp32=8.1),
    Gpu(name="V100-16GB", memory=15.7, capability=(7, 0), fp32=15.7),
    Gpu(name="V100-32GB", memory=31, capability=(7, 0), fp32=15.7),
    Gpu(name="RTX-3090", memory=23, capability=(8, 6), fp32=35.6, tf32=35.6, bf16=71.0),
    Gpu(name="RTX-4090", memory=23, capability=(8, 9), fp32=82.6, tf32=82.6, bf16=165.2),
    Gpu(name="A10G", memory=21, capability=(8, 6), fp32=35.0, tf32=35.0, bf16=70.0),
    Gpu(name="L4", memory=22, capability=(8, 9), fp32=30.3, tf32=60.0, bf16=121.0),
    Gpu(name="L40S", memory=44, capability=(8, 9), fp32=91.6, tf32=183.0, bf16=362.0),
    Gpu(name="A100-40GB", memory=39, capability=(8, 0), fp32=19.5, tf32=156.0, bf16=312.0),
    Gpu(name="A100-80GB", memory=79, capability=(8, 0), fp32=19.5, tf32=156.0, bf16=312.0),
    Gpu(name="H100", memory=78, capability=(9, 0), fp32=67.0, tf32=494.0, bf16=989.0),
    Gpu(name="H200", memory=139, capability=(9, 0), fp32=67.0, tf32=494.0, bf16=989.0),
    Gpu(name="GH200", memory=94, capability=(9, 0), fp32=67.0, tf32=494.0, bf16=989.0),
    Gpu(name="B200", memory=178, capability=(10, 0), fp32=75.0, tf32=1100.0, bf16=2250.0),
)

DEFAULT_GPUS = ("T4", "V100-16GB", "A100-40GB", "H100", "H200")
"""GPUs to forecast for if the user names none."""


def find_gpus(names: Sequence[str]) -> list[Gpu]:
    """Find GPUs by name, ignoring case: one of the list, or a slice of it such as `H200 MIG 1g.18gb`.

    Raises:
        NotFound: a name is unknown; the message lists the known ones.
    """
    known = {gpu.name.lower(): gpu for gpu in GPUS}
    found = []
    for name in names:
        whole = known.get(_PROFILE.sub("", name).lower())
        if whole is None:
            raise NotFound(
                f"--gpu {name!r} is unknown; known are {', '.join(gpu.name for gpu in GPUS)} and their MIG "
                "slices, such as 'H200 MIG 1g.18gb'; measure another GPU with --calibrate",
                field="gpu",
            )
        found.append(_sliced(whole, name))
    return found


def gpu_of_device(device: str) -> Gpu | None:
    """Find a GPU or a slice by its name in torch; None if it is not in the list.

    Examples are `NVIDIA H100 80GB HBM3` and `NVIDIA H200 MIG 1g.18gb`. If a chip exists with two memory sizes
    and the name has neither, return the smaller one.
    """
    words = re.split(r"[\s-]+", _PROFILE.sub("", device).lower())
    same_chip = [gpu for gpu in GPUS if gpu.chip.lower() in words]
    if not same_chip:
        return None
    exact = [gpu for gpu in same_chip if set(gpu.name.lower().split("-")) <= set(words)]
    return _sliced((exact or same_chip)[0], device)


def gpu_of_this_machine() -> Gpu | None:
    """The first GPU of this machine; None if there is none or it is not in the list."""
    return gpu_of_device(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None


def _sliced(whole: Gpu, name: str) -> Gpu:
    """The slice of a GPU that a name says, or the whole GPU."""
    profile = _PROFILE.search(name)
    if profile is None:
        return whole
    share = int(profile["own"] or profile["slices"]) / COMPUTE_SLICES
    parts = round(MEMORY_SLICES * int(profile["gb"]) / whole.memory)
    return replace(
        whole,
        name=f"{whole.name} {profile.group().strip()}",
        memory=SLICE_MEMORY * whole.memory * parts / MEMORY_SLICES,
        fp32=whole.fp32 * share,
        tf32=None if whole.tf32 is None else whole.tf32 * share,
        bf16=None if whole.bf16 is None else whole.bf16 * share,
        share=share,
    )
