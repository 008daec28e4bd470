"""The packages that this benchmark needs; imports nothing else, so that it can name all that are missing."""

from __future__ import annotations

import importlib.util
import sys

OLDEST_TORCH = (2, 10)

PACKAGES = {
    "torch": "torch>=2.10",
    "numpy": "numpy",
    "cv2": "opencv-python-headless",
    "pydantic": "pydantic",
    "pytorch_optimizer": "pytorch-optimizer",
    "rich": "rich",
    "safetensors": "safetensors",
    "structlog": "structlog",
    "yaml": "pyyaml",
}
"""Name in imports, and what to give pip."""


def stop_if_missing() -> None:
    """End the process with exit code 2 and the names of all packages that are missing or too old."""
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if "torch>=2.10" not in missing:
        import torch

        if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
            missing.append(f"torch>=2.10 (here is {torch.__version__})")
    if missing:
        print(f"benchmarks.gpu needs packages that are not installed: {', '.join(missing)}", file=sys.stderr)
        sys.exit(2)
