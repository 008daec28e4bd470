"""The files that a stranger reads first agree on version and licence."""

from __future__ import annotations

import tomllib
from typing import Any

import yaml

from tests.harness.source_copy import PROJECT


def read_yaml(path: str) -> Any:
    return yaml.safe_load((PROJECT / path).read_text(encoding="utf-8"))


def test_version_and_licence_are_the_same_everywhere() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = read_yaml("CITATION.cff")
    assert citation["version"] == project["version"] == read_yaml("helm/foldwise/Chart.yaml")["appVersion"]
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert f"## {project['version']} " in (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "Apache License" in (PROJECT / "LICENSE").read_text(encoding="utf-8")


def test_commit_hooks_run_only_the_tools_of_the_environment() -> None:
    repositories = read_yaml(".pre-commit-config.yaml")["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    for hook in repositories[0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")


def test_an_image_gets_every_package_that_is_installed() -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = set(settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    lines = (PROJECT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from=" not in line]
    copied = {source for sources in copies for source in sources}
    assert packages <= copied
    allowed = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert allowed[0] == "*"
    assert copied == {line[1:] for line in allowed if line.startswith("!")}
