"""Which device each worker of `foldwise up` gets, on machines with and without GPUs: real processes, no GPU."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psutil
import pytest

from cli.local import devices
from cli.local.devices import Gpus, ask_torch, devices_of_workers, parse_devices
from services.errors import EXIT_UNAVAILABLE_HERE, InvalidInput, MachineUnusable
from tests.acceptance.up import Up, foldwise, wait_for
from tests.harness.machines_with_gpus import OLD_DRIVER, machine

NONE = Gpus(count=0, cause="torch sees no GPU", fix="attach one")


@pytest.mark.parametrize(
    ("wanted", "parsed"),
    [
        ("0,2", ["cuda:0", "cuda:2"]),
        ("cuda:1, cuda:1", ["cuda:1", "cuda:1"]),
        ("cuda", ["cuda:0"]),
        ("cpu,cpu", ["cpu", "cpu"]),
    ],
)
def test_names_of_devices(wanted: str, parsed: list[str]) -> None:
    assert parse_devices(wanted) == parsed


@pytest.mark.parametrize(("wanted", "part"), [("", ""), ("0,", ""), ("gpu0", "gpu0"), ("-1", "-1")])
def test_a_name_that_is_no_device_is_refused(wanted: str, part: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(f"--devices {wanted!r}: {part!r} is no device")):
        parse_devices(wanted)


@pytest.mark.parametrize(
    ("gpus", "wanted", "workers", "chosen"),
    [
        (3, None, None, ["cuda:0", "cuda:1", "cuda:2"]),
        (3, None, 2, ["cuda:0", "cuda:1"]),
        (3, "2,0", None, ["cuda:2", "cuda:0"]),
        (3, "2,0", 1, ["cuda:2"]),
        (1, "0,0", None, ["cuda:0", "cuda:0"]),
        (1, "cpu", 3, ["cpu"] * 3),
        (1, "cpu,cpu", None, ["cpu"] * 2),
        (1, "0,cpu", None, ["cuda:0", "cpu"]),
        (1, None, 0, []),
        (0, None, None, ["cpu"]),
        (0, None, 4, ["cpu"] * 4),
    ],
)
def test_each_worker_has_its_device(
    monkeypatch: pytest.MonkeyPatch, gpus: int, wanted: str | None, workers: int | None, chosen: list[str]
) -> None:
    monkeypatch.setattr(devices, "ask_torch", lambda: Gpus(count=gpus) if gpus else NONE)
    assert devices_of_workers(wanted, workers, notify=lambda _: None) == chosen


def test_more_workers_than_gpus_are_refused_with_the_way_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "ask_torch", lambda: Gpus(count=2))
    with pytest.raises(InvalidInput, match=r"--workers is 3, .* only 2 .* --devices cuda:0,cuda:1,cuda:0$"):
        devices_of_workers(None, 3, notify=print)


def test_a_gpu_that_is_not_there_is_for_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "ask_torch", lambda: Gpus(count=2))
    with pytest.raises(MachineUnusable, match="names cuda:5, but torch sees only cuda:0, cuda:1 here"):
        devices_of_workers("0,5", None, notify=print)
    monkeypatch.setattr(devices, "ask_torch", lambda: NONE)
    with pytest.raises(MachineUnusable, match="names cuda:0: torch sees no GPU; attach one"):
        devices_of_workers("0", None, notify=print)


def test_the_cpu_is_not_taken_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(devices, "ask_torch", lambda: NONE)
    assert devices_of_workers(None, None, notify=said.append, workers_on_cpu=2) == ["cpu", "cpu"]
    assert said == ["workers train on the CPU: torch sees no GPU"]


def test_torch_is_asked_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in machine(3).items():
        monkeypatch.setenv(name, value)
    assert ask_torch() == Gpus(count=3)


# --- `foldwise up` ----------------------------------------------------------------------------------------


def workers_of(up: Up) -> dict[str, str]:
    """The device of each worker process, by name; one whose end `up` has not seen yet is `ended`."""
    found = {}
    for child in psutil.Process(up.process.pid).children():
        try:
            words = child.cmdline()
        except psutil.NoSuchProcess:
            words = []
        if not words:
            found["ended"] = ""
        elif "worker" in words:
            found[words[words.index("--name") + 1]] = words[words.index("--device") + 1]
    return found


def test_eight_gpus_have_eight_workers_that_keep_their_devices(tmp_path: Path) -> None:
    with Up(tmp_path / "state", devices=None, environment=machine(8)) as up:
        expected = {f"worker-{number}": f"cuda:{number - 1}" for number in range(1, 9)}
        wait_for(lambda: workers_of(up) == expected)
        before = up.worker("worker-6")
        before.send_signal(signal.SIGKILL)
        wait_for(lambda: not before.is_running() and workers_of(up) == expected)
    for name, device in expected.items():
        assert f"\n{name} on {device}\n" in up.output


@pytest.mark.long
def test_a_worker_without_a_usable_gpu_is_not_restarted_and_the_others_go_on(tmp_path: Path) -> None:
    with Up(tmp_path / "state", devices="1,0", environment=machine(2, old_gpus=[1])) as up:
        registered = "SELECT name, device FROM foldwise.workers"
        wait_for(lambda: up.query(registered) and workers_of(up) == {"worker-2": "cuda:0"})
        assert up.query(registered) == [("worker-2", "Faked GPU 0")]
        assert up.process.poll() is None
    why = "worker-1 on cuda:1 ended and is not restarted: cuda:1 (Faked GPU 1) has compute capability 7.0"
    assert up.output.count(why) == 1
    assert up.log("worker-1").count("compute capability") == 1


def test_up_ends_with_69_where_no_worker_can_run(tmp_path: Path) -> None:
    run = foldwise("up", "--state", str(tmp_path), "--port", "0", **machine(1, old_gpus=[0]))
    assert run.returncode == EXIT_UNAVAILABLE_HERE, run.stderr
    assert "foldwise: no worker can run on this machine; the first one said: cuda:0 (Faked GPU 0)" in run.stderr


def test_up_names_why_a_gpu_that_was_asked_for_is_not_there(tmp_path: Path) -> None:
    run = foldwise("up", "--state", str(tmp_path), "--devices", "0", **machine(0, error=OLD_DRIVER))
    assert run.returncode == EXIT_UNAVAILABLE_HERE
    assert re.search(r"names cuda:0: NVIDIA's driver .* supports CUDA up to 11\.4, .*; update", run.stderr)
    assert not any(tmp_path.iterdir()), "nothing was started"
