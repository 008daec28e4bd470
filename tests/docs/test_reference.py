"""docs/reference.md names every field of a study, every parameter, every call and every command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel
from typer.core import TyperGroup

from cli.main import app
from docs.make_rest import description
from services.contracts import (
    PRUNING_RULES,
    Augmentation,
    ComputeSettings,
    Economies,
    StudySpec,
    TrainingSettings,
)
from services.search_space import PARAMETERS
from tests.harness.documented_commands import PROJECT

REFERENCE = (PROJECT / "docs" / "reference.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """The text between this heading and the next one of its level."""
    return REFERENCE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def example_study() -> dict[str, Any]:
    study: dict[str, Any] = yaml.safe_load(section("A study").split("```yaml\n")[1].split("```")[0])
    return study


# `cross_validated` is set by `foldwise train-final` and explained in the text.
@pytest.mark.parametrize(
    ("path", "contract", "explained_elsewhere"),
    [
        ((), StudySpec, {"cross_validated"}),
        (("training",), TrainingSettings, set()),
        (("training", "augmentation"), Augmentation, set()),
        (("economies",), Economies, set()),
        (("compute",), ComputeSettings, set()),
    ],
)
def test_the_example_study_has_every_field(
    path: tuple[str, ...], contract: type[BaseModel], explained_elsewhere: set[str]
) -> None:
    shown: Any = example_study()
    for key in path:
        shown = shown[key]
    assert set(shown) == set(contract.model_fields) - explained_elsewhere


def test_the_example_study_has_every_pruning_rule_with_its_settings() -> None:
    shown = {rule["rule"]: set(rule) for rule in example_study()["pruning"]}
    assert shown == {rule.model_fields["rule"].default: set(rule.model_fields) for rule in PRUNING_RULES}


def test_every_pruning_rule_is_explained() -> None:
    explained = set(re.findall(r"^\*\*(\w+)\*\* ", (PROJECT / "docs" / "pruning.md").read_text(), re.MULTILINE))
    assert {rule.model_fields["rule"].default for rule in PRUNING_RULES} <= explained


def test_every_parameter_of_a_search_space_is_named() -> None:
    named = set(re.findall(r"`(\w+)`", section("A search space")))
    assert set(PARAMETERS) <= named


def test_every_call_is_named() -> None:
    paths = [path for path in description()["paths"] if path.startswith("/api/v1/")]
    missing = [path for path in paths if f"/{_last_word(path)}" not in section("REST")]
    assert missing == []


def test_every_command_is_named() -> None:
    first_column = [line.split(" | ")[0] for line in section("Commands").splitlines() if line.startswith("| ")]
    words = [set(re.findall(r"[a-z-]+", cell)) for cell in first_column]
    missing = [
        " ".join(path)
        for path in command_paths(typer.main.get_command(app))
        if not any(set(path) <= in_cell for in_cell in words)
    ]
    assert missing == []


def command_paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command after `foldwise`."""
    if not isinstance(command, TyperGroup):
        yield path
        return
    for name, below in command.commands.items():
        yield from command_paths(below, (*path, name))


def _last_word(path: str) -> str:
    return next(part for part in reversed(path.split("/")) if not part.startswith("{"))
