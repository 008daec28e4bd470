"""The processor's model, as results name it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from worker.training import processor
from worker.training.processor import processor_name

INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 207
model name\t: Intel(R) Xeon(R) Processor
stepping\t: 2

processor\t: 1
model name\t: another
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "name"),
    [
        (INTEL, "x86_64", "Intel(R) Xeon(R) Processor, family 6, model 207"),
        (ARM, "aarch64", "aarch64"),
        (None, "arm64", "arm64"),
        (None, "", None),
        ("model name\t: a\x00b\x1bc" + 200 * "d", "", "abc" + 125 * "d"),
    ],
)
def test_the_name_has_what_tells_models_apart(
    cpuinfo: str | None, machine: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert processor_name.__wrapped__() == name
