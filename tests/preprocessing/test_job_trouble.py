"""Preprocessing on full and failing disks, beside another run, and after kills at any moment."""

from __future__ import annotations

import errno
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from preprocessing.clips import ClipSettings
from preprocessing.datasets.registry import read_dataset
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.frames import read_last_frames
from preprocessing.job import Outcome, preprocess
from preprocessing.video_packets import is_video, list_packets
from services.clip_cache import cache_folder
from services.clip_cache_writer import sole_writer
from services.errors import FoldwiseError, InvalidInput, Unavailable
from tests.preprocessing.media_files import clip_path, video

SIZE = 32


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven sequences."""
    root = tmp_path_factory.mktemp("tree")
    write_ckplus_tree(root, subjects=1, difficulty=0.2)
    return root


@pytest.fixture(scope="module")
def whole(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A cache made in one go."""
    return run(tree, tmp_path_factory.mktemp("whole"))


def run(tree: Path, caches: Path) -> Outcome:
    return preprocess("ckplus", tree, caches, settings=ClipSettings(frame_size=SIZE), processes=1)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def parts(caches: Path) -> set[Path]:
    return set(caches.glob("ckplus/.*.partial/parts/*.npz"))


def command(tree: Path, caches: Path) -> list[str]:
    options = ["--dataset", "ckplus", "--root", str(tree), "--cache-root", str(caches)]
    return [
        sys.executable,
        "-m",
        "cli.main",
        "preprocess",
        *options,
        "--frame-size",
        str(SIZE),
        "--processes",
        "1",
    ]


# --- disks --------------------------------------------------------------------------------------------------


def test_a_disk_that_fails_ends_the_run_and_makes_no_other_cache(
    tree: Path, whole: Outcome, tmp_path: Path
) -> None:
    copy, caches = tmp_path / "copy", tmp_path / "caches"
    shutil.copytree(tree, copy)
    victim = read_dataset("ckplus", copy).sequences[3].frames[-2]
    kept = victim.read_bytes()
    victim.unlink()
    # Reading another process's memory at address 0 is an input/output error on every Linux.
    victim.symlink_to("/proc/self/mem")
    with pytest.raises(Unavailable, match=rf"{victim.name}: Input/output error; .* run the same again"):
        run(copy, caches)
    assert not list(caches.glob("ckplus/*/manifest.json"))
    victim.unlink()
    victim.write_bytes(kept)
    assert content(run(copy, caches).folder) == content(whole.folder)


def test_a_disk_that_fails_while_files_are_recognized_ends_the_run(tmp_path: Path) -> None:
    clip = tmp_path / "videos" / "anna" / "happy" / "clip"
    clip.parent.mkdir(parents=True)
    clip.symlink_to("/proc/self/mem")
    with pytest.raises(Unavailable, match=rf"{clip}: Input/output error; run the same again"):
        preprocess(
            "video-folder", tmp_path / "videos", tmp_path / "caches", settings=ClipSettings(), processes=1
        )


def test_a_disk_that_fails_while_ffmpeg_reads_is_no_damaged_video(tmp_path: Path) -> None:
    class StaleFile(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= stale_after:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return super().read(min(size or 0, stale_after - self.tell())) or b""

    class StalePath(type(tmp_path)):  # type: ignore[misc]
        def open(self, *_: object) -> StaleFile:
            return StaleFile(str(self))

    video("clip.mkv", "ffv1")(tmp_path)
    path = StalePath(clip_path(tmp_path, "clip.mkv"))
    stale_after = 200
    with pytest.raises(OSError, match="Stale file handle"):
        is_video(path)
    stale_after = path.stat().st_size // 2
    assert is_video(path)
    with pytest.raises(OSError, match="Stale file handle"):
        list_packets(path)


def test_a_file_that_is_gone_or_no_file_is_an_unreadable_frame(tree: Path, tmp_path: Path) -> None:
    sequence = read_dataset("ckplus", tree).sequences[0]
    gone, folder = tmp_path / "gone.png", tmp_path / "folder.png"
    folder.mkdir()
    read = read_last_frames(replace(sequence, frames=(sequence.frames[0], gone, folder)), 3, colour=False)
    assert [frame.name for frame in read.frames] == [sequence.frames[0].name]
    assert read.flags == (
        "unreadable frame folder.png: Is a directory",
        "unreadable frame gone.png: No such file or directory",
    )


def stopped_by_a_limit(tree: Path, caches: Path, kilobytes: int) -> str:
    """The message of a run in which no file may grow beyond the limit."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))

    done = subprocess.run(
        command(tree, caches),
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize(("kilobytes", "kept"), [(4, 0), (60, 7)])
def test_no_room_ends_the_run_with_advice_and_keeps_what_is_done(
    tree: Path, whole: Outcome, tmp_path: Path, kilobytes: int, kept: int
) -> None:
    # First not even a clip's part has room, then not the joined arrays.
    message = stopped_by_a_limit(tree, tmp_path, kilobytes)
    assert "no space is left for the clip cache" in message
    assert "make room, then run the same again" in message
    assert len(parts(tmp_path)) == kept
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.glob("ckplus/.*.partial/final"))
    assert content(run(tree, tmp_path).folder) == content(whole.folder)


def test_a_part_that_was_damaged_is_made_again(tree: Path, whole: Outcome, tmp_path: Path) -> None:
    stopped_by_a_limit(tree, tmp_path, 60)
    damaged = max(parts(tmp_path))
    damaged.write_bytes(damaged.read_bytes()[:-300])
    with pytest.raises(FoldwiseError, match=r"was damaged after it was written .* run the same again"):
        run(tree, tmp_path)
    assert content(run(tree, tmp_path).folder) == content(whole.folder)


@pytest.mark.long
def test_a_full_disk_likewise(tree: Path, whole: Outcome, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    inside = f'mount -t tmpfs -o size=200k tmpfs {mount} && exec "$@"'
    shell = ["unshare", "--mount", "--map-root-user", "sh", "-c", inside, "sh"]
    if subprocess.run([*shell, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no one mount a small disk")
    done = subprocess.run([*shell, *command(tree, mount)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "make room, then run the same again" in done.stderr


def test_a_cache_root_that_cannot_be_written_to_is_told(tree: Path, tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("no folder")
    with pytest.raises(InvalidInput, match="give a cache root that can be written to"):
        run(tree, taken)


# --- two at a time ------------------------------------------------------------------------------------------


def test_a_second_run_beside_the_first_is_told_to_wait(tree: Path, whole: Outcome, tmp_path: Path) -> None:
    with (
        sole_writer(tmp_path, "ckplus", whole.manifest.fingerprint),
        pytest.raises(Unavailable, match="another process is making the clip cache"),
    ):
        run(tree, tmp_path)
    assert content(run(tree, tmp_path).folder) == content(whole.folder)


# --- kills --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.timeout(900)
def test_kills_at_random_moments_leave_the_same_cache(
    tree: Path, whole: Outcome, tmp_path: Path, kills: int
) -> None:
    rng = random.Random(kills)
    target = cache_folder(tmp_path, "ckplus", whole.manifest.fingerprint)
    killed = 0
    while killed < kills:
        before = len(parts(tmp_path))
        further = rng.choice([0, 0, 1, 2, 7])
        with subprocess.Popen(
            command(tree, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        ) as process:
            # A random while after some progress: in the start, in the hashes, in a clip, in the join.
            while process.poll() is None and len(parts(tmp_path)) < min(7, before + further):
                pass
            try:
                process.wait(timeout=rng.uniform(0.0, 2.0 if further == 0 else 0.2))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
                continue
            assert process.stderr is not None
            assert process.returncode == 0, process.stderr.read()
        # It was done before its moment came.
        assert content(target) == content(whole.folder)
        shutil.rmtree(target)
    last = run(tree, tmp_path)
    assert last.manifest.fingerprint == whole.manifest.fingerprint
    assert content(last.folder) == content(whole.folder)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
