"""The revision that results are stored with: of an image, a checkout, or an installed package."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from services import revision
from services.revision import revision_of_source, running_revision


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    revision_of_source.cache_clear()
    return tmp_path


@pytest.fixture
def no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOLDWISE_REVISION", "FOLDWISE_IMAGE_DIGEST"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_image")
def test_a_checkout_is_described_by_git_once_per_process(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revision, "SOURCE", checkout)
    # As inside a hook of another repository.
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))
    with monkeypatch.context() as patched:
        patched.delenv("GIT_DIR")
        commit = git(checkout, "rev-parse", "--short", "HEAD")
    assert running_revision() == commit
    (checkout / "code.py").write_text("2")
    assert running_revision() == commit
    revision_of_source.cache_clear()
    assert running_revision() == f"{commit}-dirty"
    monkeypatch.setenv("FOLDWISE_REVISION", "1f0c9d2")
    assert running_revision() == "1f0c9d2"


def test_a_folder_inside_another_checkout_is_an_installed_package(checkout: Path) -> None:
    installed = checkout / "site-packages"
    installed.mkdir()
    assert revision_of_source(installed) == version("foldwise")


@pytest.mark.parametrize("trouble", ["no git", "no commit", "git fails", "git hangs"])
def test_a_checkout_that_git_cannot_describe_has_the_packages_version(
    tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trouble == "no commit":
        git(tmp_path, "init", "--quiet")
    else:
        (tmp_path / ".git").mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    if trouble in {"git fails", "git hangs"}:
        (programs / "git").write_text(f"#!/bin/sh\n{'exit 3' if trouble == 'git fails' else 'exec sleep 60'}\n")
        (programs / "git").chmod(0o755)
        monkeypatch.setattr(revision, "_GIT_SECONDS", 0.2)
    if trouble != "no commit":
        monkeypatch.setenv("PATH", f"{programs}:/bin" if trouble == "git hangs" else str(programs))
    revision_of_source.cache_clear()
    assert revision_of_source(tmp_path) == version("foldwise")
