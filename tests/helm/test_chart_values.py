"""The descriptions of the chart's values: one for each key, and the same in every generated file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm import generate
from helm.values_model import ChartValues

CHART = generate.CHART


def test_generated_files_are_current() -> None:
    assert (CHART / "values.schema.json").read_text() == generate.schema(), "run `make chart`"
    assert (CHART / "values.yaml").read_text() == generate.values(), "run `make chart`"
    assert (CHART / "README.md").read_text() == generate.readme(), "run `make chart`"


def test_a_description_changed_by_hand_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (CHART / "values.yaml").read_text()
    edited = text.replace("# -- Extra labels of every object and pod.", "# -- Labels.\n#    A second line.")
    assert edited != text
    (tmp_path / "values.yaml").write_text(edited)
    monkeypatch.setattr(generate, "CHART", tmp_path)
    assert generate.values() == text


def test_every_value_is_described_and_typed() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    ChartValues.model_validate(values)
    described = [value.key for key in values for value in generate.described_values(key)]
    assert len(described) == len(set(described))

    def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
        if isinstance(node, dict) and ".".join(path) not in described and node:
            for key, value in node.items():
                yield from leaves(value, (*path, key))
        else:
            yield ".".join(path)

    assert sorted(leaves(values)) == sorted(key for key in described if "[]" not in key)


def test_every_key_of_the_schema_has_a_description() -> None:
    seen = []

    def look(node: dict[str, Any], key: str) -> None:
        # A reader of draft 7 ignores a description beside a reference.
        assert "$ref" not in node, key
        if "properties" in node or not key.endswith("[]"):
            assert re.fullmatch(r"[A-Z0-9`].*\S\.", node.get("description", "")), key
            seen.append(key)
        for name, below in node.get("properties", {}).items():
            look(below, f"{key}.{name}".removeprefix("."))
        if "items" in node:
            look(node["items"], f"{key}[]")

    look(json.loads((CHART / "values.schema.json").read_text()), "")
    assert {"coordinator", "worker.kueue.queueName", "preprocessing.datasets[]"} < set(seen)
    assert "preprocessing.datasets[].source.subPath" in seen


def test_the_readme_lists_every_example() -> None:
    listed = re.findall(r"^\| `examples/(.+?)\.yaml` \|", (CHART / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in (CHART / "examples").glob("*.yaml"))
