"""The devices of the workers on this machine: which there are, and which worker gets which."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.errors import FoldwiseError, InvalidInput, MachineUnusable

_ASK_TORCH = """
import dataclasses, json
from worker.training.gpus import visible_gpus, why_no_gpu
count = visible_gpus()
print(json.dumps({"count": count, **({} if count else dataclasses.asdict(why_no_gpu()))}))
"""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """What torch says of this machine's GPUs."""

    count: int
    cause: str | None = None
    """Why there is none."""

    fix: str | None = None
    is_fault: bool = False


def devices_of_workers(
    wanted: str | None, workers: int | None, *, notify: Callable[[str], None], workers_on_cpu: int = 1
) -> list[str]:
    """The torch device of each worker, in their order.

    Args:
        wanted: devices separated by commas, as in `--devices`; None takes all GPUs, or else the CPU.
        workers: number of workers; None means one per device.
        notify: called with the reason if `wanted` is None and there is no GPU.
        workers_on_cpu: number of workers if neither it nor a device is given and there is no GPU.

    Raises:
        InvalidInput: a name is no device, or there are more workers than devices.
        MachineUnusable: this machine has no such GPU.
    """
    if workers == 0:
        return []
    if wanted is None:
        found = ask_torch()
        if found.count == 0:
            fix = f"; {found.fix}" if found.is_fault else ""
            notify(f"workers train on the CPU: {found.cause}{fix}")
            return ["cpu"] * (workers or workers_on_cpu)
        devices = [f"cuda:{index}" for index in range(found.count)]
    else:
        devices = parse_devices(wanted)
        if set(devices) == {"cpu"}:
            # Workers share the cores anyway.
            return ["cpu"] * (workers or len(devices))
        _check_present(devices)
    if workers is None:
        return devices
    if workers > len(devices):
        shared = ",".join((devices * workers)[:workers])
        raise InvalidInput(
            f"--workers is {workers}, but there {'is' if len(devices) == 1 else 'are'} only {len(devices)} "
            f"({', '.join(devices)}), one for each worker; to share a GPU on purpose, name it more than once: "
            f"--devices {shared}",
            field="workers",
        )
    return devices[:workers]


def parse_devices(wanted: str) -> list[str]:
    """The devices of a list such as `0,2`, `cuda:0,cuda:0` or `cpu`, as torch writes them.

    Raises:
        InvalidInput: a part is no device.
    """
    devices = []
    for part in (part.strip() for part in wanted.split(",")):
        index = re.fullmatch(r"(?:cuda:)?(\d{1,4})", part)
        if index is None and part not in {"cpu", "cuda"}:
            raise InvalidInput(
                f"--devices {wanted!r}: {part!r} is no device; write numbers of GPUs such as 0,2, or cpu",
                field="devices",
            )
        devices.append(f"cuda:{int(index[1])}" if index else {"cuda": "cuda:0"}.get(part, part))
    return devices


def ask_torch() -> Gpus:
    """Ask torch for this machine's GPUs, in another process.

    This process stays small and forks others, so it neither imports torch nor starts CUDA.

    Raises:
        FoldwiseError: torch does not answer.
    """
    answer = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-P", "-c", _ASK_TORCH], capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        said = (answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[-1]
        raise FoldwiseError(f"torch does not say which GPUs this machine has: {said}; name them with --devices")
    return Gpus(**json.loads(answer.stdout.splitlines()[-1]))


def _check_present(devices: Sequence[str]) -> None:
    found = ask_torch()
    present = {"cpu", *(f"cuda:{index}" for index in range(found.count))}
    missing = [device for device in devices if device not in present]
    if not missing:
        return
    if found.count == 0:
        raise MachineUnusable(f"--devices names {missing[0]}: {found.cause}; {found.fix}", field="devices")
    gpus = ", ".join(f"cuda:{index}" for index in range(found.count))
    raise MachineUnusable(
        f"--devices names {missing[0]}, but torch sees only {gpus} here; use these", field="devices"
    )
