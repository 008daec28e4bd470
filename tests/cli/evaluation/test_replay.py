"""What a replay says of a fold whose bits cannot match."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.evaluation.replay import compare
from services.contracts import MemoryFormat
from tests.harness.fold_tasks import assign, write_cache
from tests.harness.simulated_results import make_result


@pytest.mark.parametrize(
    ("memory_format", "plan_is_frozen", "named"),
    [
        ("channels_last", False, ["arithmetic"]),
        ("channels_last", True, []),
        ("contiguous", False, []),
    ],
)
def test_a_fold_of_a_version_with_other_roundings_is_named(
    memory_format: MemoryFormat, plan_is_frozen: bool, named: list[str], tmp_path: Path
) -> None:
    task = assign(write_cache(tmp_path, subjects=3, clips_of_class=1, size=16))
    result = make_result(task, (0,) * len(task.test_clips), memory_format=memory_format)
    compared = compare(result, result, plan_is_frozen=plan_is_frozen)
    assert compared.equal
    assert list(compared.environment) == named


@pytest.mark.parametrize(
    ("recorded", "device", "named"),
    [("A", "cpu", ["processor"]), ("B", "cpu", []), (None, "cpu", []), ("A", "NVIDIA H200", [])],
)
def test_another_processor_is_named_where_the_cpu_computed(
    recorded: str | None, device: str, named: list[str], tmp_path: Path
) -> None:
    task = assign(write_cache(tmp_path, subjects=3, clips_of_class=1, size=16))
    labels = (0,) * len(task.test_clips)
    before = make_result(task, labels, processor=recorded, device=device)
    found = compare(before, make_result(task, labels, processor="B", device=device))
    assert list(found.environment) == named
    assert before.provenance.device == device
    shown = before.provenance.device_in_words
    assert shown == (f"cpu ({recorded})" if device == "cpu" and recorded else device)
