"""Machines with GPUs, as far as torch can tell: environments for real processes of foldwise."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver "
    "from http://www.nvidia.com/Download/index.aspx"
)
"""What torch says on a machine without a GPU."""

OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
    "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
"""What torch says where the driver is older than its CUDA."""


def machine(gpus: int, *, error: str = NO_DRIVER, old_gpus: Sequence[int] = ()) -> dict[str, str]:
    """Environment variables of a process whose torch sees this many GPUs.

    Args:
        gpus: their number.
        error: what torch says when CUDA is started, if there is none.
        old_gpus: indices of those for which torch has no kernels; the others have capability 9.0.
    """
    shim = str(Path(__file__).parent / "faked_gpus")
    path = os.pathsep.join(filter(None, (shim, os.environ.get("PYTHONPATH"))))
    told = {"count": gpus, "error": error, "old": (7, 0), "old_gpus": list(old_gpus)}
    return {"PYTHONPATH": path, "FAKED_GPUS": json.dumps(told)}
