"""Oulu-CASIA and folders of videos, from the command to the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocessing.clips import ClipSettings
from preprocessing.datasets.registry import read_dataset
from preprocessing.datasets.synthetic import write_synthetic_tree
from preprocessing.job import preprocess
from services.clip_cache import ClipCache, open_cache
from services.errors import InvalidInput

SETTINGS = ClipSettings(frame_size=48)


def make(dataset: str, root: Path, caches: Path, **reader_settings: str) -> ClipCache:
    outcome = preprocess(dataset, root, caches, settings=SETTINGS, processes=1, reader_settings=reader_settings)
    return open_cache(outcome.folder)


@pytest.fixture(scope="module")
def oulu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("oulu") / "set"
    write_synthetic_tree(root, layout="oulu-casia", subjects=2, classes=["happy", "anger"])
    return root


@pytest.fixture(scope="module")
def videos(oulu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sequences as videos; one subject has a name that is not UTF-8."""
    root = tmp_path_factory.mktemp("videos") / "set"
    for sequence in read_dataset("oulu-casia", oulu).sequences:
        folder = root / os.fsdecode(b"anna" if sequence.subject == "P001" else b"Ren\xe9") / sequence.label
        folder.mkdir(parents=True)
        plain = root / "plain.mp4"
        writer = cv2.VideoWriter(str(plain), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 25, (320, 240))
        for path in sequence.frames:
            writer.write(np.asarray(cv2.imread(str(path)), np.uint8))
        writer.release()
        plain.rename(folder / "clip.mp4")
    return root


def test_oulu_casia_in_colour(oulu: Path, tmp_path: Path) -> None:
    cache = make("oulu-casia", oulu, tmp_path)
    manifest = cache.manifest
    assert (manifest.dataset, manifest.clips, manifest.subjects, manifest.channels) == ("oulu-casia", 4, 2, 3)
    assert manifest.class_counts == {
        "anger": 2, "disgust": 0, "fear": 0, "happy": 2, "sadness": 0, "surprise": 0
    }  # fmt: skip
    assert manifest.settings["reader"] == {"modality": "VL", "lighting": "Strong"}
    assert cache.records[0].source == "VL/Strong/P001/Anger"
    plain, clahe = (np.asarray(cache.frames(clahe=which)) for which in (False, True))
    assert plain.shape == clahe.shape == (4, 10, 48, 48, 3)
    red, _, blue = plain.reshape(-1, 3).mean(axis=0)
    assert red > blue + 10  # faces, in the order that everything but OpenCV has
    # CLAHE changes the lightness: what is left of colours stays about the same
    assert np.abs(plain.mean(axis=(0, 1, 2, 3)) - clahe.mean(axis=(0, 1, 2, 3))).max() < 30
    assert not np.array_equal(plain, clahe)


def test_near_infrared_is_gray_and_another_cache(oulu: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "OriginalImg").mkdir(parents=True)
    for modality in ("VL", "NI"):
        (root / "OriginalImg" / modality).symlink_to(oulu / "OriginalImg/VL")
    visible = make("oulu-casia", root, tmp_path / "caches")
    infrared = make("oulu-casia", root, tmp_path / "caches", modality="NI")
    assert (visible.manifest.channels, infrared.manifest.channels) == (3, 1)
    assert visible.manifest.fingerprint != infrared.manifest.fingerprint
    assert visible.manifest.skipped == {"OriginalImg/NI": "not asked for: modality is VL and lighting Strong"}


def test_videos_give_the_clips_of_their_frames(oulu: Path, videos: Path, tmp_path: Path) -> None:
    stills, moving = make("oulu-casia", oulu, tmp_path), make("video-folder", videos, tmp_path, name="films")
    assert moving.manifest.dataset == "films"
    assert moving.folder == tmp_path / "films" / moving.manifest.fingerprint
    assert [(r.clip_id, r.subject, r.label) for r in moving.records] == [
        ("Ren\\xe9/anger/clip.mp4", "Ren\\xe9", "anger"),
        ("Ren\\xe9/happy/clip.mp4", "Ren\\xe9", "happy"),
        ("anna/anger/clip.mp4", "anna", "anger"),
        ("anna/happy/clip.mp4", "anna", "happy"),
    ]
    assert moving.records[2].frames[0].startswith("clip.mp4#")
    assert moving.records[2].source == "anna/anger/clip.mp4"
    by_name = {record.source: row for row, record in enumerate(stills.records)}
    still = np.asarray(stills.frames(clahe=False)[by_name["VL/Strong/P001/Anger"]], np.int16)
    difference = np.abs(still - moving.frames(clahe=False)[2])
    assert difference.mean() < 12  # two encodings, and boxes that may differ by a pixel


def test_a_list_cuts_clips_from_videos(videos: Path, tmp_path: Path) -> None:
    listing = tmp_path / "clips.csv"
    listing.write_text(
        "path,subject,label,start,end\n"
        "anna/happy/clip.mp4,anna,Rest,0,3\n"
        "anna/happy/clip.mp4,anna,Joy,0.16s,\n"
        "anna/anger/gone.mp4,anna,Joy,,\n"
    )
    cache = make("video-folder", videos, tmp_path, manifest=str(listing), colour="no")
    assert cache.manifest.classes == ("joy", "rest")
    assert cache.manifest.channels == 1
    rest = next(record for record in cache.records if record.label == "rest")
    assert rest.frames[:4] == tuple(f"clip.mp4#{number}" for number in range(4))
    assert rest.repeated == 6
    joy = next(record for record in cache.records if record.label == "joy")
    assert int(joy.frames[0].rpartition("#")[2]) >= 4
    reasons = set(cache.manifest.skipped.values())
    assert reasons == {"anna/anger/gone.mp4 is not there", "not in the list"}


def test_a_root_without_clips_is_told_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInput, match=r"no labelled sequence of video-folder; 1 things .* notes\.txt: "):
        make("video-folder", tmp_path, tmp_path / "caches")


def test_the_command_says_what_it_did_not_read(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "set").symlink_to(videos)
    for name in ("a.txt", "b.txt", "[red].txt"):
        (videos / name).write_text("mine")
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "cli.main", "preprocess", "--dataset", "video_folder"),
                *("--root", tmp_path / "set", "--cache-root", tmp_path / "caches", "--frame-size", "32"),
                *("--processes", "1", "--json"),
            ],
            env={**os.environ, "FOLDWISE_READER_SETTINGS": "name=films colour=no"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for path in videos.glob("*.txt"):
            path.unlink()
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert (manifest["dataset"], manifest["channels"]) == ("films", 1)
    assert "not read: 3 x neither a video nor an image: [red].txt, a.txt, b.txt\n" in done.stderr


def test_synth_draws_what_preprocess_reads(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli.main", "synth", str(tmp_path / "set"), "--layout", "oulu-casia"]
    drawn = subprocess.run(
        [*command, "--subjects", "2", "--classes", "happy, fear", "--gray"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        drawn.stdout.splitlines()[-1] == f"foldwise preprocess --dataset oulu-casia --root {tmp_path / 'set'}"
    )
    sequences = read_dataset("oulu-casia", tmp_path / "set").sequences
    assert {sequence.label for sequence in sequences} == {"happy", "fear"}
    assert len(sequences) == 4
    other = subprocess.run([*command, "--subjects", "3"], capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert "other settings" in other.stderr
