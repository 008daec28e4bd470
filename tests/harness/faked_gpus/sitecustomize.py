"""Python imports this at its start, where the folder is on its path: torch then sees the GPUs of `FAKED_GPUS`.

Everything else of the program is real. What it puts on a GPU lies on the CPU.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any


class _Finder:
    """Finds torch as usual, and changes it once it is imported."""

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        spec = PathFinder.find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            fake(module, json.loads(os.environ["FAKED_GPUS"]))

        loader.exec_module = execute_and_change
        return spec


def fake(torch: Any, gpus: dict[str, Any]) -> None:
    count = gpus["count"]

    def fail() -> None:
        if count == 0:
            raise RuntimeError(gpus["error"])

    def index_of(device: Any) -> int:
        return device if isinstance(device, int) else int(device.index or 0)

    cuda = torch.cuda
    cuda.init = fail
    cuda.is_available = lambda: count > 0
    cuda.device_count = lambda: count
    cuda.get_device_name = lambda device=0: f"Faked GPU {index_of(device)}"
    cuda.get_device_capability = lambda device=0: tuple(
        gpus["old"] if index_of(device) in gpus["old_gpus"] else (9, 0)
    )
    cuda.get_arch_list = lambda: ["sm_75", "sm_80", "sm_90"]
    cuda.get_device_properties = lambda device=0: SimpleNamespace(total_memory=16 << 30)
    cuda.mem_get_info = lambda device=0: (16 << 30, 16 << 30)
    cuda.max_memory_allocated = lambda device=0: 0
    for name in ("set_device", "empty_cache", "reset_peak_memory_stats", "synchronize"):
        setattr(cuda, name, lambda *_: None)

    torch.accelerator.is_available = lambda *_, **__: False

    from torch.overrides import TorchFunctionMode

    class OnTheCpu(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            def moved(value: Any) -> Any:
                is_gpu = isinstance(value, torch.device) and value.type == "cuda"
                return torch.device("cpu") if is_gpu else value

            return function(
                *(moved(value) for value in args),
                **{name: moved(value) for name, value in (kwargs or {}).items()},
            )

    OnTheCpu().__enter__()  # type: ignore[no-untyped-call]


if "FAKED_GPUS" in os.environ:
    sys.meta_path.insert(0, _Finder())
