"""Readers by name: foldwise's own, and those of packages that are installed for real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from preprocessing.datasets.ckplus import read_ckplus
from preprocessing.datasets.registry import BUILT_IN, dataset_names, read_dataset, read_settings
from preprocessing.datasets.synthetic import write_ckplus_tree
from services.errors import FoldwiseError, InvalidInput

HOW_TO = Path(__file__).parents[3] / "docs/how-to/own-reader.md"


def blocks(language: str) -> list[str]:
    """The code blocks of the how-to."""
    return re.findall(rf"```{language}\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL)


def wheel(folder: Path, name: str, code: str, entry_points: str) -> Path:
    """A package of one module, as a build would make it."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": entry_points,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]))
    return path


def install(path: Path, site: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, path],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )


def add_package(site: Path, name: str, code: str, entry_points: str) -> None:
    """Installed metadata without pip, which takes a second."""
    with zipfile.ZipFile(wheel(site, name, code, entry_points)) as archive:
        archive.extractall(site)


def test_a_reader_of_an_installed_package_makes_a_cache(tmp_path: Path) -> None:
    (code,), (project, *_) = blocks("python"), blocks("toml")
    group, target = re.findall(r'entry-points\."(.*?)"\]\n(\S+ = ".*?")', project)[0]
    module = target.split('"')[1].partition(":")[0]
    install(wheel(tmp_path, module, code, f"[{group}]\n{target.replace(chr(34), '')}\n"), tmp_path / "site")

    write_ckplus_tree(tmp_path / "tree", subjects=1)
    frames = sorted((tmp_path / "tree").rglob("*.png"))[:3]
    (tmp_path / "set").mkdir()
    for number, path in enumerate(frames):
        path.rename(tmp_path / "set" / f"s1-joy-{number}.png")
    (tmp_path / "set" / "notes.txt").write_text("mine")

    name = target.partition(" = ")[0]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cli.main", "preprocess", "--dataset", name, "--root", tmp_path / "set"),
            *("--cache-root", tmp_path / "caches", "--frame-size", "32", "--processes", "1", "--json"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["dataset"] == name
    assert manifest["class_counts"] == {"joy": 1}
    assert list(manifest["skipped"]) == ["notes.txt"]


def test_own_readers_are_known_by_name(tmp_path: Path) -> None:
    assert set(dataset_names()) >= {"ckplus", "oulu-casia", "video-folder"}
    (tmp_path / "cohn-kanade-images").mkdir()
    (tmp_path / "Emotion").mkdir()
    assert read_dataset("ckplus", tmp_path) == read_ckplus(tmp_path)


@pytest.mark.parametrize("file", ["cli/commands/cache.py", "helm/values_workloads.py", "docs/reference.md"])
def test_own_readers_are_named_where_a_user_chooses_one(file: str) -> None:
    text = (HOW_TO.parents[2] / file).read_text(encoding="utf-8")
    assert [name for name in BUILT_IN if name not in text] == []


def test_hyphens_and_underscores_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "anna/happy").mkdir(parents=True)
    (tmp_path / "anna/happy/one.mp4").write_bytes(b"content")
    assert read_dataset("video_folder", tmp_path) == read_dataset("video-folder", tmp_path)


def test_an_unknown_dataset_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'fer2013'.*ckplus.*oulu-casia.*video-folder") as refused:
        read_dataset("fer2013", tmp_path)
    assert refused.value.field == "dataset"


def test_an_unknown_setting_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'light'.*oulu-casia; its settings are: modality, lighting"):
        read_dataset("oulu-casia", tmp_path, {"light": "Weak"})
    with pytest.raises(InvalidInput, match="it has no settings"):
        read_dataset("ckplus", tmp_path, {"lighting": "Weak"})


def test_settings_are_read_from_texts() -> None:
    assert read_settings(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    for texts in (["a"], ["=b"], ["a=b", "a=c"]):
        with pytest.raises(InvalidInput):
            read_settings(texts)


MODULE = """
from dataclasses import replace

from preprocessing.datasets.reader import Dataset, FrameSequence

def read(root):
    one = FrameSequence(clip_id="a", subject="s", label="joy", source="a", frames=(root / "a.png",))
    return {dataset}
"""


@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        ("None", "a NoneType instead of a Dataset"),
        ("Dataset(name='My Set', classes=('joy',), sequences=(one,))", "the name 'My Set'"),
        ("Dataset(name='x', classes=('joy',), sequences=(one, one))", "the clip id 'a' twice"),
        ("Dataset(name='x', classes=('fear',), sequences=(one,))", "with the label 'joy', which is not among"),
        ("Dataset(name='x', classes=('joy',), sequences=(replace(one, frames=()),))", "both or neither"),
        (
            "Dataset(name='x', classes=('joy',), sequences=(replace(one, split='dev'),))",
            "'a' with the split 'dev', not train, validation or test",
        ),
        (
            "Dataset(name='x', classes=('joy',), sequences=(replace(one, fold='1' * 101),))",
            "'a' with a fold of 101 characters, more than 100",
        ),
        (
            "Dataset(name='x', classes=('joy',), sequences=(one, replace(one, clip_id='b', fold='1')))",
            "sequences with a fold and others without",
        ),
        (
            "Dataset(name='x', classes=('joy',), sequences=(one, replace(one, clip_id='b', subject='')))",
            "sequences with a subject and others without",
        ),
    ],
)
def test_what_a_reader_may_not_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, problem: str
) -> None:
    name = f"made_{tmp_path.name}".replace("-", "_")
    add_package(tmp_path, name, MODULE.format(dataset=dataset), f"[foldwise.datasets]\nmade-up = {name}:read\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "made-up" in dataset_names()
    with pytest.raises(FoldwiseError, match=f"the reader of made-up returned .*{re.escape(problem)}"):
        read_dataset("made-up", tmp_path)


def test_a_reader_that_cannot_be_loaded_is_told_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_package(tmp_path, "broken", "import no_such_module", "[foldwise.datasets]\nbroken = broken:read\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FoldwiseError, match=r"reader of broken from broken \(broken:read\).*no_such_module"):
        read_dataset("broken", tmp_path)


def test_two_packages_with_one_name_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first_one", "second_one"):
        add_package(tmp_path, name, "", f"[foldwise.datasets]\nsame = {name}:read\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InvalidInput, match=r"several packages .*first_one.*second_one"):
        read_dataset("same", tmp_path)


def test_a_package_cannot_take_the_name_of_a_reader_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_package(tmp_path, "thief", "def read(root): return None", "[foldwise.datasets]\nckplus = thief:read\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for folder in ("cohn-kanade-images", "Emotion"):
        (tmp_path / folder).mkdir()
    assert read_dataset("ckplus", tmp_path).name == "ckplus"
