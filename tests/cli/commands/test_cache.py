"""`foldwise preprocess`, `inspect` and `verify`, from the command line to what they print."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.terminal.cache_summary import print_outcome
from cli.terminal.consoles import PlainConsole
from coordinator.app import create_app
from coordinator.settings import CoordinatorSettings
from preprocessing.datasets.ckplus import IMAGES, LABELS
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.inspection import Check, check_cache, inspect_cache
from preprocessing.job import Outcome
from preprocessing.near_copies import NearCopies
from services.clip_cache import CacheManifest, ClipCache, cache_folder, list_caches, open_cache
from services.errors import CacheMismatch, FoldwiseError, InvalidInput
from tests.harness.served_app import ADMIN_TOKEN, served

SIZE = 32


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects; S900's first clip is a copy of another subject's, and a clip has no face."""
    root = tmp_path_factory.mktemp("tree")
    write_ckplus_tree(root, subjects=2, difficulty=0.2)
    original = sorted((root / IMAGES).glob("*/001"))[0]
    copy = root / IMAGES / "S900" / "001"
    copy.mkdir(parents=True)
    for path in original.iterdir():
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        name = path.name.replace(original.parent.name, "S900")
        cv2.imwrite(str(copy / name), cv2.convertScaleAbs(image, alpha=0.9, beta=12))
    label = next((root / LABELS / original.parent.name / "001").iterdir())
    (root / LABELS / "S900" / "001").mkdir(parents=True)
    shutil.copy(label, root / LABELS / "S900" / "001" / label.name.replace(original.parent.name, "S900"))
    for path in sorted((root / IMAGES).glob("*/002"))[0].iterdir():
        cv2.imwrite(str(path), np.full((490, 640), 90, np.uint8))
    return root


@pytest.fixture(scope="module")
def caches(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the cache of the tree, the faceless clip kept."""
    caches = tmp_path_factory.mktemp("caches")
    done = foldwise("preprocess", *options(tree, caches), "--few-faces", "keep")
    assert done.exception is None
    return caches


@pytest.fixture
def cache(caches: Path) -> ClipCache:
    (manifest,) = list_caches(caches)
    return open_cache(cache_folder(caches, manifest.dataset, manifest.fingerprint))


def options(tree: Path, caches: Path) -> list[str]:
    given = {"dataset": "ckplus", "root": tree, "cache-root": caches, "frame-size": SIZE, "processes": 1}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def foldwise(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app, arguments, env=environment)


# --- preprocess ---------------------------------------------------------------------------------------------


def test_progress_is_lines_and_the_summary_has_counts_reasons_and_leaks(tree: Path, tmp_path: Path) -> None:
    said = foldwise("preprocess", *options(tree, tmp_path)).stdout
    assert "dropped: S001_002: no face in its last" in said
    assert "leak: S001_001 and S900_001 are near-identical (correlation 0.99" in said
    assert "belong to subjects S001 and S900" in said
    assert "15 made now, 1 flagged, 1 dropped; leaks between subjects: 1" in said
    assert "14 clips of 3 subjects" in said
    # Without a terminal progress is plain lines.
    (line,) = [line for line in said.splitlines() if "clips 15/15" in line]
    assert "per second" in line
    assert "\x1b" not in said


def test_thousands_of_near_copies_are_a_few_lines(cache: ClipCache, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = tuple(
        NearCopies(one=f"a{number}", other=f"b{number}", subjects=("a", "b"), correlation=1.0)
        for number in range(12345)
    )
    outcome = Outcome(manifest=cache.manifest, folder=cache.folder, made=0, flagged={}, near_copies=pairs)
    print_outcome(outcome, PlainConsole())
    said = capsys.readouterr().out.splitlines()
    leaks = [line for line in said if line.startswith("leak: ")]
    assert leaks[:2] == [f"leak: {pair}" for pair in pairs[:2]]
    assert leaks[10:] == [f"leak: 12335 more pairs; `foldwise inspect {cache.folder} --json` lists all"]
    assert "leaks between subjects: 12345" in said[-2]
    check = Check(name="no clip appears under two subjects", problems=tuple(map(str, pairs)))
    lines = list(check.lines())
    assert lines[:2] == [f"look: {pair}" for pair in pairs[:2]]
    assert lines[10:] == [
        "look: 12335 more of the check 'no clip appears under two subjects'; --json lists all"
    ]
    assert len(list(Check(name="x", problems=("one",) * 10).lines())) == 10


def test_the_state_folder_of_up_is_named_as_everywhere(tree: Path, caches: Path, tmp_path: Path) -> None:
    shutil.copytree(caches, tmp_path / "caches")
    given = {"dataset": "ckplus", "root": tree, "frame-size": SIZE, "processes": 1, "few-faces": "keep"}
    words = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    for command in (["preprocess", *words], ["inspect", "ckplus"], ["verify", "ckplus"]):
        done = foldwise(*command, "--state", str(tmp_path))
        assert done.exception is None, done.output
        assert str(tmp_path / "caches" / "ckplus") in done.stdout
    assert "0 made now" in foldwise("preprocess", *words, "--state", str(tmp_path)).stdout


def made(caches: Path) -> CacheManifest:
    (manifest,) = list_caches(caches)
    return manifest


def test_settings_come_from_the_command_line_then_the_environment_then_the_file_then_the_preset(
    tree: Path, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        f"root: {tree}\nframe-size: 24\nframes: 3\nfew_faces: keep\nbox: median\nframe_sampling: middle\n"
    )
    environment = {
        "FOLDWISE_FRAMES": "1",
        "FOLDWISE_WINDOWS": "2",
        "FOLDWISE_BOX": "frame",
        "FOLDWISE_CACHE_ROOT": str(tmp_path / "c"),
    }
    done = foldwise("preprocess", "--settings", str(file), "--preset", "demo", "--box", "median", **environment)
    assert done.exception is None, done.output
    manifest = made(tmp_path / "c")
    assert (manifest.frames, manifest.windows) == (1, 2)
    inspected = foldwise("inspect", str(tmp_path / "c" / "ckplus" / manifest.fingerprint)).stdout
    assert "2 windows of 1 frames (middle) of 24 x 24" in inspected
    settings = manifest.settings
    assert settings["frame_sampling"] == "middle"  # file over preset
    assert {name: settings[name] for name in ("frame_size", "frames", "few_faces", "box", "detector")} == {
        "frame_size": 24,  # file over preset
        "frames": 1,  # environment over file
        "few_faces": "keep",  # file over default
        "box": "median",  # command line over environment
        "detector": "yunet",  # preset
    }


@pytest.mark.long
def test_the_presets_of_the_paper_crop_with_its_detector(tree: Path, tmp_path: Path) -> None:
    arguments = ["--preset", "ckplus-loso", "--root", str(tree), "--cache-root", str(tmp_path)]
    assert foldwise("preprocess", *arguments, "--processes", "1").exception is None
    manifest = made(tmp_path)
    assert (manifest.dataset, manifest.frames, manifest.frame_size) == ("ckplus", 10, 112)
    assert manifest.settings["detector"] == "res10"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("frame_siez: 24", "sets 'frame_siez', which is not an option"),
        ("- 24", "holds no mapping; write the options as NAME: VALUE"),
        ("a: [", "is neither YAML nor JSON"),
        ("few_faces: perhaps", "few_faces is 'perhaps'; use one of: drop, keep"),
        ("reader_settings: lighting=Weak x=1", "setting 'lighting' is not known to the reader of ckplus"),
    ],
)
def test_a_bad_settings_file_is_told(tree: Path, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    error = foldwise("preprocess", "--settings", str(file), *options(tree, tmp_path)).exception
    assert isinstance(error, InvalidInput)
    assert message in error.message


def test_a_finished_cache_is_registered_where_the_coordinator_sees_it(
    tree: Path, caches: Path, settings: CoordinatorSettings, tmp_path: Path
) -> None:
    arguments = ["preprocess", *options(tree, caches), "--few-faces", "keep"]
    with served(create_app(replace(settings, cache_root=caches))) as client:
        url = str(client.base_url).rstrip("/")
        done = foldwise(*arguments, "--register", url, FOLDWISE_TOKEN=ADMIN_TOKEN)
        assert done.exception is None
        assert f"the coordinator at {url} lists ckplus/" in done.stdout
    with served(create_app(replace(settings, cache_root=tmp_path))) as client:
        url = str(client.base_url).rstrip("/")
        error = foldwise(*arguments, FOLDWISE_REGISTER=url, FOLDWISE_TOKEN=ADMIN_TOKEN).exception
    assert isinstance(error, FoldwiseError)
    assert "does not list it; give the coordinator the volume" in error.message
    assert error.exit_code == 1


def test_to_register_needs_a_token_before_the_work_begins(tree: Path, tmp_path: Path) -> None:
    done = foldwise(
        "preprocess", *options(tree, tmp_path), "--register", "http://localhost:1", FOLDWISE_TOKEN=""
    )
    assert isinstance(done.exception, InvalidInput)
    assert list(tmp_path.iterdir()) == []


# --- inspect ------------------------------------------------------------------------------------------------


def test_inspect_tells_classes_subjects_folds_and_flags(caches: Path) -> None:
    done = foldwise("inspect", "ckplus", "--cache-root", str(caches), "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["clips"], found["subjects"], found["detector"]) == (15, 3, "yunet")
    assert sum(one["clips"] for one in found["classes"]) == 15
    assert [(one["protocol"], one["folds"], one["least_clips"]) for one in found["folds"]] == [("loso", 3, 1)]
    assert list(found["flagged"]) == ["S001_002", "S001_004"]
    assert 0.85 < found["confidence"]["frames_with_face"] < 1.0
    assert 0.6 <= found["confidence"]["least"] <= found["confidence"]["median"] <= 1.0
    problems = {check["name"]: check["problems"] for check in found["checks"] if check["problems"]}
    assert set(problems) == {"no clip appears under two subjects", "every clip shows something"}
    assert problems["every clip shows something"] == ["S001_002 is one flat surface"]
    for words in (
        "flagged: S001_002: no face in any of",
        "look: S001_001 and S900_001 are near-identical",
        "loso: 3 folds",
        "not read: 1 x no label file",
    ):
        assert words in done.stderr


def test_the_contact_sheet_has_a_row_a_clip_and_marks_what_is_flagged(caches: Path, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    heights = []
    for count in (9, 0):
        arguments = ["--sheet", str(path), "--clips-per-class", str(count)]
        assert foldwise("inspect", "ckplus", "--cache-root", str(caches), *arguments).exception is None
        sheet = cv2.imread(str(path))
        assert sheet is not None
        red = (sheet == (0, 0, 204)).all(axis=-1)
        # ten cells of 72 pixels with a border of 3, and antialiased words beside
        assert red[:, 300:].sum() == 10 * (72**2 - 66**2)
        heights.append(sheet.shape[0])
    assert heights[0] - heights[1] == 13 * 76


# --- verify -------------------------------------------------------------------------------------------------


def test_verify_is_content_with_a_whole_cache(caches: Path) -> None:
    done = foldwise("verify", "ckplus", "--cache-root", str(caches))
    assert done.exception is None
    assert "ok: 3 files have the SHA-256 that the manifest records" in done.stdout
    assert "ok: index and manifest agree" in done.stdout


def test_verify_finds_a_flipped_bit(caches: Path, tmp_path: Path) -> None:
    shutil.copytree(caches, tmp_path / "copy")
    (arrays,) = (tmp_path / "copy").glob("*/*/clips.npy")
    content = bytearray(arrays.read_bytes())
    content[-1] ^= 1
    arrays.write_bytes(content)
    error = foldwise("verify", str(arrays.parent)).exception
    assert isinstance(error, CacheMismatch)
    assert "clips.npy is not as it was written" in error.message
    assert error.exit_code == 64


@pytest.mark.parametrize("wanted", ["ckplus/0000", "oulu-casia", "/no/such/folder"])
def test_a_cache_that_is_not_there_is_told(caches: Path, wanted: str) -> None:
    error = foldwise("inspect", wanted, "--cache-root", str(caches)).exception
    assert isinstance(error, CacheMismatch)
    assert wanted in error.message


def test_checks_find_an_index_that_disagrees(cache: ClipCache) -> None:
    first, *rest = cache.records
    wrong = first.model_copy(update={"label": "bored", "confidences": first.confidences[:-1], "repeated": 3})
    altered = ClipCache(cache.folder, cache.manifest, (wrong, *rest[:-1], rest[0]))
    problems = [problem for check in check_cache(altered) if check.broken for problem in check.problems]
    for words in (
        "same id",
        "'bored' is not among the classes",
        "frames, boxes and confidences",
        "should repeat",
    ):
        assert any(words in problem for problem in problems), words
    inspect_cache(altered)  # a cache is told about however wrong it is
