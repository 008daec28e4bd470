"""The program for a GPU goes through the same code on the CPU, scaled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu import measurements, required_packages
from benchmarks.gpu.report import Record, as_markdown, speeds, summary
from benchmarks.gpu.run import Parts
from benchmarks.gpu.workload import Workload, make_workload
from services.contracts import ComputePlan
from tests.harness.documented_commands import PROJECT

FP32 = ComputePlan()


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return make_workload(tmp_path_factory.mktemp("caches"), "cpu")


def test_each_measurement_finds_what_its_part_of_the_report_shows(workload: Workload) -> None:
    def measured(part: str, found: dict[str, Any], **about: object) -> Record:
        return Record(part=part, about=about, found=found, seconds=1.0)

    records = [
        measured("machine", measurements.machine(workload)),
        measured("peak", measurements.peak(workload, "fp32"), precision="fp32"),
        measured("plain loop", measurements.plain_loop(workload)),
        measured("plan", measurements.plan(workload, FP32), plan="fp32"),
        measured("fold", measurements.fold(workload, FP32), plan="fp32"),
        measured("repeat", measurements.repeat(workload, FP32), plan="fp32", process=0),
        measured("repeat", measurements.repeat(workload, FP32), plan="fp32", process=1),
        measured("kernels", measurements.profiled(workload, FP32), plan="fp32"),
        measured("out of memory", measurements.out_of_memory(workload, FP32)),
        measured("first convolution", measurements.first_convolution(workload, FP32)),
    ]
    text = as_markdown(records)
    for words in (
        "# cpu",
        "| plain loop |",
        "| fp32 |",
        "A whole fold in fp32",
        "equal bits",
        "| kernel | share |",
    ):
        assert words in text
    assert "- out of memory: a CPU's memory is that of the machine" in text
    (speed,) = speeds(records)
    assert speed.ratio == pytest.approx(
        records[3].found["clips_per_second"] / records[2].found["clips_per_second"]
    )
    assert speed.mfu is not None
    assert 0 < speed.mfu < 1
    kernels = records[7].found["kernels"]
    assert len(kernels) == measurements.LARGEST_KERNELS
    assert 0 < sum(kernel["share"] for kernel in kernels) <= 1
    found = summary(records, plan="fp32", seconds=10.0)
    assert (found["device"], found["repeat_equal"], found["replay_equal"]) == ("cpu", True, True)
    assert list(found["not_measured"]) == ["out of memory"]
    assert json.loads(json.dumps(found)) == found


def test_other_bits_are_traced_to_a_layer(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = iter(range(1000))
    real = measurements._keep

    def spoil(outputs: dict[str, Any], name: str, *rest: Any) -> None:
        real(outputs, name, *rest)
        if name == "features.5":
            outputs[name] += next(passes)

    monkeypatch.setattr(measurements, "_keep", spoil)
    assert measurements._first_difference(workload, FP32) == "the output of features.5"


def test_a_part_that_hangs_or_dies_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    parts = Parts(tmp_path, until=time.monotonic() + 60)
    for part, measure in (
        ("good", _number),
        ("hangs", _hang),
        ("dies", _die),
        ("fails", _fail),
        ("good again", _number),
    ):
        parts.take(part, measure, at_most=3 if part == "hangs" else 30)
    parts.close()
    found = {record.part: record.reason for record in parts.records}
    assert found["good"] is found["good again"] is None
    assert found["hangs"] == "its process ended, after at most 3 s"
    assert found["dies"] == "its process ended, after at most 30 s"
    assert found["fails"] == "ValueError: what went wrong"
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines] == ["good", "hangs", "dies", "fails", "good again"]
    assert "- fails: ValueError: what went wrong" in (tmp_path / "gpu.md").read_text()


def test_without_time_nothing_is_begun(tmp_path: Path) -> None:
    parts = Parts(tmp_path, until=time.monotonic())
    assert parts.take("late", _die, at_most=30).reason == "no time was left"


def test_all_missing_packages_are_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(required_packages.PACKAGES, "no_such_module", "no-such-package")
    monkeypatch.setitem(required_packages.PACKAGES, "nor_this", "nor-this")
    with pytest.raises(SystemExit) as ended:
        required_packages.stop_if_missing()
    assert ended.value.code == 2
    assert "not installed: no-such-package, nor-this" in capsys.readouterr().err


def test_the_listed_packages_are_enough() -> None:
    script = "import sys, benchmarks.gpu.run; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    ).stdout.split()
    distribution_of = packages_distributions()
    loaded_of = {module: set(distribution_of[module]) for module in loaded if module in distribution_of}
    listed = {name for module in required_packages.PACKAGES for name in distribution_of[module]}
    needed = {canonicalize_name(name) for name in _with_requirements(listed)}
    others = {
        module: names
        for module, names in loaded_of.items()
        if not {canonicalize_name(name) for name in names} & needed and module not in sys.stdlib_module_names
    }
    # torch, rich and structlog import these only where they are installed.
    optional = {"attrs", "colorama", "greenlet", "tqdm"}
    assert set().union(*others.values()) <= {"foldwise", *optional}


@pytest.mark.long
def test_the_program_ends_with_its_json_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--minutes", "2", "--out", str(tmp_path), "--device", "cpu"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    last = json.loads(ended.stdout.splitlines()[-1])
    assert last["device"] == "cpu"
    assert last["clips_per_second"] > 0
    assert last["seconds"] < 150
    assert (tmp_path / "gpu.md").read_text().startswith("# cpu")


def _with_requirements(names: Iterable[str]) -> set[str]:
    """These distributions and all that they need, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        with suppress(PackageNotFoundError):
            needs = map(Requirement, requires(name) or ())
            waiting += [
                each.name for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})
            ]
    return found


def _number() -> dict[str, Any]:
    return {"number": 1}


def _hang() -> dict[str, Any]:
    time.sleep(600)
    return {}


def _die() -> dict[str, Any]:
    os._exit(3)


def _fail() -> dict[str, Any]:
    raise ValueError("what went wrong")
