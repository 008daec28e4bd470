"""Which GPUs torch can use, and what is said of those that it cannot; no GPU is needed here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from services.errors import EXIT_UNAVAILABLE_HERE, InvalidInput, MachineUnusable
from tests.harness.machines_with_gpus import NO_DRIVER, OLD_DRIVER
from worker.training import gpus
from worker.training.device import choose_device
from worker.training.gpus import check_gpu, has_kernels_for, why_no_gpu

CPU = torch.device("cpu")


def see(monkeypatch: pytest.MonkeyPatch, count: int, error: str = NO_DRIVER) -> None:
    """Let torch see this many GPUs, and say this if CUDA is started without one."""

    def init() -> None:
        raise RuntimeError(error)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "init", init)


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU, played by the CPU, which torch has kernels for."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    return monkeypatch


# --- Choosing ---------------------------------------------------------------------------------------------


def test_without_a_wish_the_first_gpu_is_taken_or_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 2)
    assert choose_device(None) == torch.device("cuda:0")
    assert choose_device("cuda:1", require_gpu=True) == torch.device("cuda:1")
    assert choose_device("cuda") == torch.device("cuda:0")
    see(monkeypatch, 0)
    assert choose_device(None) == choose_device("cpu") == CPU


@pytest.mark.parametrize(
    ("wanted", "require_gpu", "count", "words"),
    [
        (None, True, 0, "a GPU is required .* no NVIDIA driver; install"),
        ("cuda:0", False, 0, "--device 'cuda:0': .* no NVIDIA driver; install"),
        ("cuda:1", False, 1, "torch sees 1 GPU here, the last is cuda:0"),
        ("cuda:9", True, 2, "torch sees 2 GPUs here, the last is cuda:1"),
    ],
)
def test_a_gpu_that_is_asked_for_is_never_replaced_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, wanted: str | None, require_gpu: bool, count: int, words: str
) -> None:
    see(monkeypatch, count)
    with pytest.raises(MachineUnusable, match=words) as refused:
        choose_device(wanted, require_gpu=require_gpu)
    assert refused.value.exit_code == EXIT_UNAVAILABLE_HERE == 69


def test_the_cpu_contradicts_a_required_gpu() -> None:
    with pytest.raises(InvalidInput, match="--device is 'cpu', but --require-gpu"):
        choose_device("cpu", require_gpu=True)


# --- Why there is none ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "cause", "is_fault"),
    [
        (NO_DRIVER, "this machine has no NVIDIA driver", False),
        (OLD_DRIVER, r"supports CUDA up to 11\.4, and torch \S+ is built for CUDA \d", True),
        ("No CUDA GPUs are available", "torch sees no GPU", True),
        ("CUDA unknown error - this may be due to\nan environment", "does not start: CUDA unknown error", True),
    ],
)
def test_the_cause_is_named(monkeypatch: pytest.MonkeyPatch, said: str, cause: str, is_fault: bool) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    see(monkeypatch, 0, said)
    found = why_no_gpu()
    assert found.is_fault == is_fault
    with pytest.raises(MachineUnusable, match=cause):
        choose_device(None, require_gpu=True)


def test_hidden_gpus_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    see(monkeypatch, 0, "No CUDA GPUs are available")
    found = why_no_gpu()
    assert (found.cause, found.is_fault) == ("torch sees no GPU: CUDA_VISIBLE_DEVICES is ''", False)


@pytest.mark.parametrize("driver", [None, "580.65.06"])
def test_a_torch_without_cuda_is_a_fault_where_there_is_a_driver(
    monkeypatch: pytest.MonkeyPatch, driver: str | None
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(gpus, "driver_version", lambda: driver)
    found = why_no_gpu()
    assert "is built without CUDA" in found.cause
    assert found.is_fault == (driver is not None)


# --- Whether one computes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "built_for", "fits"),
    [
        ((9, 0), ["sm_75", "sm_90"], True),
        ((8, 9), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((12, 0), ["sm_100"], False),
        ((12, 1), ["sm_120"], True),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((7, 0), ["compute_75"], False),
        ((10, 3), ["sm_100a"], False),
        ((10, 0), ["sm_100a"], True),
        ((10, 3), ["sm_100f"], True),
        ((9, 0), [], False),
        ((9, 0), ["something"], False),
    ],
)
def test_which_gpus_a_build_has_kernels_for(
    capability: tuple[int, int], built_for: list[str], fits: bool
) -> None:
    assert has_kernels_for(capability, built_for) == fits


def test_a_gpu_that_computes_is_good_and_no_random_number_is_used(usable: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    check_gpu(CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_gpu_without_kernels_is_named_with_its_capability(usable: pytest.MonkeyPatch) -> None:
    usable.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 0))
    with pytest.raises(MachineUnusable, match=r"\(NVIDIA H200\) has compute capability 7\.0, .* sm_75"):
        check_gpu(CPU)


def no_kernel(*_: Any, **__: Any) -> Any:
    raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nmore")


def wrong_once() -> Callable[..., Any]:
    """Torch's convolution, whose first result, the GPU's, has one wrong value."""
    calls: list[int] = []
    convolve = F.conv3d

    def wrong(*arguments: Any, **given: Any) -> Any:
        calls.append(1)
        result = convolve(*arguments, **given)
        return result + 30.0 * (len(calls) == 1) * torch.eye(result.shape[-1])

    return wrong


def not_finite_once() -> Callable[..., Any]:
    calls: list[int] = []
    convolve = F.conv3d

    def wrong(*arguments: Any, **given: Any) -> Any:
        calls.append(1)
        return convolve(*arguments, **given) * (float("nan") if len(calls) == 1 else 1.0)

    return wrong


@pytest.mark.parametrize(
    ("convolve", "words"),
    [
        (
            lambda: no_kernel,
            "runs no kernel: CUDA error: no kernel image is available for execution on .*; check",
        ),
        (wrong_once, "computes wrong results: a small training step differs from the CPU's by [0-9.e+]+ of"),
        (not_finite_once, "computes wrong results: a small training step differs from the CPU's by nan of"),
    ],
)
def test_a_gpu_that_computes_nothing_or_wrongly_is_unusable(
    usable: pytest.MonkeyPatch, convolve: Callable[[], Callable[..., Any]], words: str
) -> None:
    usable.setattr(F, "conv3d", convolve())
    with pytest.raises(MachineUnusable, match=words):
        check_gpu(CPU)


def test_a_gpu_that_does_not_start_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_device: torch.device) -> str:
        raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "get_device_name", fail)
    with pytest.raises(MachineUnusable, match="cpu does not start: CUDA-capable"):
        check_gpu(CPU)
