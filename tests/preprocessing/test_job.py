"""The preprocessing job on a CK+ tree with the traps of real copies: what it makes, again, and after a kill."""

from __future__ import annotations

import multiprocessing
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cli.terminal.contact_sheet import save_contact_sheet
from preprocessing.clips import BoxChoice, ClipSettings, FaceClip, FewFaces, make_clip
from preprocessing.datasets.reader import FrameSequence
from preprocessing.datasets.registry import read_dataset
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.faces import make_detector
from preprocessing.frame_sampling import FrameSampling
from preprocessing.inspection import inspect_cache
from preprocessing.job import Outcome, preprocess
from services.clip_cache import ClipCache, Frames, list_caches, open_cache
from services.clip_cache_writer import CacheWriter
from services.errors import FoldwiseError, InvalidInput, NotFound
from services.seeds import sha256_of

SIZE = 32
SETTINGS = ClipSettings(frame_size=SIZE)
GRAY = 90
"""Of a frame without a face."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A synthetic tree after its traps were laid, and the clips each trap is in."""

    root: Path
    short: FrameSequence
    colour: FrameSequence
    colour_when_gray: FaceClip
    holes: FrameSequence
    faceless: FrameSequence
    blink: FrameSequence
    renumbered: FrameSequence
    unlabelled: FrameSequence
    unreadable: FrameSequence
    untouched: FrameSequence


def blank() -> bytes:
    return cv2.imencode(".png", np.full((490, 640), GRAY, np.uint8))[1].tobytes()


def png_of_ten_gigapixels() -> bytes:
    """A few bytes whose header promises more than any reader takes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def label_folder(root: Path, sequence: FrameSequence) -> Path:
    folder = sequence.frames[0].parent
    return root / "Emotion" / folder.parent.name / folder.name


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("ckplus") / "CK+"
    write_ckplus_tree(root, subjects=2, difficulty=0.2)
    longest_first = sorted(read_dataset("ckplus", root).sequences, key=lambda s: -len(s.frames))
    (holes, blink, renumbered, untouched, colour, faceless, short, unlabelled, unreadable, *_) = longest_first
    assert len(holes.frames) > 12
    assert len(faceless.frames) >= 10

    for path in short.frames[:-3]:
        path.unlink()

    as_gray = make_clip(colour, settings=SETTINGS, detector=make_detector("yunet"))
    assert isinstance(as_gray, FaceClip)
    for path in colour.frames:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert image is not None
        assert image.shape == (490, 640, 3)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())

    holes.frames[-1].write_bytes(b"")
    holes.frames[-4].write_bytes(b"\x89PNG\r\n\x1a\nnot an image at all")
    whole = holes.frames[-6].read_bytes()
    holes.frames[-6].write_bytes(whole[: len(whole) // 2])
    holes.frames[-8].write_bytes(png_of_ten_gigapixels())

    for path in faceless.frames:
        path.write_bytes(blank())
    blink.frames[-5].write_bytes(blank())

    for place, path in enumerate(renumbered.frames):
        stem = path.stem.rsplit("_", 1)[0]
        path.rename(path.with_name(f"new_{stem}_{97 + 2 * place}.png"))
    for path in renumbered.frames[0].parent.iterdir():
        path.rename(path.with_name(path.name.removeprefix("new_")))

    for path in label_folder(root, unlabelled).iterdir():
        path.unlink()
    for path in unreadable.frames:
        path.write_bytes(b"GIF89a")

    for sequence in (untouched, short):
        last = sequence.frames[-1]
        for stray in (
            last.with_name(".DS_Store"),
            last.with_name("Thumbs.db"),
            last.with_name(f"{last.name}:Zone.Identifier"),
            last.with_name(f"{last.name}.baiduyun.uploading.cfg"),
            last.with_name(f"._{last.name}"),
            label_folder(root, sequence) / ".DS_Store",
            label_folder(root, sequence) / "AAA:Zone.Identifier",
        ):
            stray.write_bytes(b"stray")

    now = {sequence.clip_id: sequence for sequence in read_dataset("ckplus", root).sequences}
    return Tree(
        root=root,
        short=now[short.clip_id],
        colour=now[colour.clip_id],
        colour_when_gray=as_gray,
        holes=now[holes.clip_id],
        faceless=now[faceless.clip_id],
        blink=now[blink.clip_id],
        renumbered=now[renumbered.clip_id],
        unlabelled=unlabelled,
        unreadable=now[unreadable.clip_id],
        untouched=now[untouched.clip_id],
    )


@pytest.fixture(scope="module")
def outcome(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Of an uninterrupted run by one process."""
    return run(tree.root, tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="module")
def cache(outcome: Outcome) -> ClipCache:
    return open_cache(outcome.folder)


def run(root: Path, caches: Path, settings: ClipSettings = SETTINGS, processes: int = 1) -> Outcome:
    return preprocess("ckplus", root, caches, settings=settings, processes=processes)


def frames_of(cache: ClipCache, sequence: FrameSequence, *, clahe: bool = False) -> Frames:
    row = [record.clip_id for record in cache.records].index(sequence.clip_id)
    frames: Frames = cache.frames(clahe=clahe)[row]
    return frames


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(paths: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(path.name for path in paths)


# --- what comes out -----------------------------------------------------------------------------------------


def test_every_labelled_sequence_is_a_clip_or_dropped_with_its_reason(
    tree: Tree, outcome: Outcome, cache: ClipCache
) -> None:
    labelled = read_dataset("ckplus", tree.root).sequences
    assert len(labelled) == 13
    assert outcome.made == 13
    dropped = {
        tree.faceless.clip_id: "no face in its last 10 frames",
        tree.unreadable.clip_id: "none of its frames can be read as an image: unreadable frame "
        f"{tree.unreadable.frames[-1].name}: it is no image that foldwise can read",
    }
    assert cache.manifest.dropped == dropped
    assert [(r.clip_id, r.subject, r.label) for r in cache.records] == [
        (s.clip_id, s.subject, s.label) for s in labelled if s.clip_id not in dropped
    ]
    assert cache.manifest.clips == sum(cache.manifest.class_counts.values()) == 11


def test_a_sequence_without_a_label_is_listed_as_skipped(tree: Tree, cache: ClipCache) -> None:
    folder = tree.unlabelled.frames[0].parent.relative_to(tree.root).as_posix()
    assert cache.manifest.skipped[folder] == "no label file: its label folder is empty"


def test_clips_are_gray_bytes_of_the_size_asked_for(cache: ClipCache) -> None:
    for clahe in (False, True):
        assert cache.frames(clahe=clahe).shape == (11, 10, SIZE, SIZE)
        assert cache.frames(clahe=clahe).dtype == np.uint8
    assert cache.manifest.channels == 1
    assert cache.manifest.settings["frame_size"] == SIZE


def test_a_clip_is_the_last_ten_frames(tree: Tree, outcome: Outcome, cache: ClipCache) -> None:
    record = next(r for r in cache.records if r.clip_id == tree.untouched.clip_id)
    assert record.frames == names(tree.untouched.frames[-10:])
    assert record.source == tree.untouched.frames[0].parent.relative_to(tree.root).as_posix()
    assert (record.repeated, record.flags, record.detector) == (0, (), "yunet")
    assert all(box is not None for box in record.boxes)
    assert len(record.boxes) == len(record.confidences) == 10
    assert record.clip_id not in outcome.flagged


def test_a_crop_is_the_box_of_the_record_resized(tree: Tree, cache: ClipCache) -> None:
    record = next(r for r in cache.records if r.clip_id == tree.untouched.clip_id)
    for place, (path, box) in enumerate(zip(tree.untouched.frames[-10:], record.boxes, strict=True)):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        assert box is not None
        x, y, width, height = box
        face = image[round(y) : round(y + height), round(x) : round(x + width)]
        expected = cv2.resize(face, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.int16)
        difference = np.abs(expected - frames_of(cache, tree.untouched)[place])
        # The record's boxes are rounded to a tenth of a pixel, so an edge may fall on the next pixel.
        assert difference.mean() < 4


def test_frames_go_by_their_number_wherever_it_starts(tree: Tree, cache: ClipCache) -> None:
    numbers = [int(path.stem.rsplit("_", 1)[1]) for path in tree.renumbered.frames]
    assert numbers == sorted(numbers)
    assert numbers[0] == 97
    record = next(r for r in cache.records if r.clip_id == tree.renumbered.clip_id)
    assert [int(Path(name).stem.rsplit("_", 1)[1]) for name in record.frames] == numbers[-10:]
    assert record.flags == ()


def test_a_short_sequence_repeats_its_last_frame(tree: Tree, cache: ClipCache) -> None:
    record = next(r for r in cache.records if r.clip_id == tree.short.clip_id)
    first, second, last = names(tree.short.frames)
    assert record.frames == (first, second, *[last] * 8)
    assert record.repeated == 7
    assert record.boxes[2:] == (record.boxes[2],) * 8
    frames = frames_of(cache, tree.short)
    assert all(np.array_equal(frame, frames[2]) for frame in frames[3:])
    assert not np.array_equal(frames[1], frames[2])


def test_a_colour_sequence_gives_the_clip_of_its_gray_values(tree: Tree, cache: ClipCache) -> None:
    assert cv2.imread(str(tree.colour.frames[-1]), cv2.IMREAD_UNCHANGED).ndim == 3  # type: ignore[union-attr]
    np.testing.assert_array_equal(frames_of(cache, tree.colour), tree.colour_when_gray.plain)
    assert tree.colour_when_gray.record in cache.records


def test_frames_that_cannot_be_read_are_left_out_and_told(tree: Tree, outcome: Outcome) -> None:
    record = next(r for r in open_cache(outcome.folder).records if r.clip_id == tree.holes.clip_id)
    bad = [tree.holes.frames[i] for i in (-1, -4, -6, -8)]
    readable = tuple(path for path in tree.holes.frames if path not in bad)[-10:]
    assert record.frames[: len(readable)] == names(readable)
    assert record.repeated == 10 - len(readable)
    reasons = (
        "it is empty",
        "it breaks off before its end",
        "it breaks off before its end",
        "it has more pixels than foldwise reads",
    )
    named = {f"unreadable frame {path.name}: {why}" for path, why in zip(bad, reasons, strict=True)}
    assert named <= set(record.flags)
    assert all(flag in named or "the last one is repeated" in flag for flag in record.flags)
    assert outcome.flagged[tree.holes.clip_id] == record.flags


def test_a_frame_without_a_face_takes_the_box_of_its_neighbour(
    tree: Tree, outcome: Outcome, cache: ClipCache
) -> None:
    record = next(r for r in cache.records if r.clip_id == tree.blink.clip_id)
    assert [place for place, box in enumerate(record.boxes) if box is None] == [5]
    assert [place for place, one in enumerate(record.confidences) if one is None] == [5]
    assert record.flags == ("no face in 1 of 10 frames",)
    assert outcome.flagged[tree.blink.clip_id] == record.flags
    frames = frames_of(cache, tree.blink)
    assert (frames[5] == GRAY).all()
    assert all(frame.std() > 5 for place, frame in enumerate(frames) if place != 5)


def test_the_clahe_variant_is_opencvs_on_the_plain_crop(cache: ClipCache) -> None:
    clahe = cv2.createCLAHE(2.0, (8, 8))
    plain, enhanced = cache.frames(clahe=False), cache.frames(clahe=True)
    for row in range(len(plain)):
        for frame, other in zip(plain[row], enhanced[row], strict=True):
            np.testing.assert_array_equal(clahe.apply(frame), other)
    assert not np.array_equal(plain, enhanced)


# --- the same again -----------------------------------------------------------------------------------------


def test_two_processes_and_another_root_give_the_same_bytes(
    tree: Tree, outcome: Outcome, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere" / "copy of CK+"
    shutil.copytree(tree.root, copy)
    other = run(copy, tmp_path / "caches", processes=2)
    assert other.manifest.fingerprint == outcome.manifest.fingerprint
    assert content(other.folder) == content(outcome.folder)


def test_a_second_run_finds_the_cache_finished(tree: Tree, outcome: Outcome) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in outcome.folder.iterdir()}

    before = state()
    again = run(tree.root, outcome.folder.parent.parent)
    assert again == replace(outcome, made=0)
    assert state() == before


@pytest.fixture
def single(tree: Tree, tmp_path: Path) -> Path:
    """A tree of one sequence of three frames."""
    root = tmp_path / "single"
    images = tree.short.frames[0].parent
    (root / images.relative_to(tree.root)).mkdir(parents=True)
    for path in tree.short.frames:
        shutil.copy(path, root / path.relative_to(tree.root))
    labels = label_folder(tree.root, tree.short)
    shutil.copytree(labels, root / labels.relative_to(tree.root))
    return root


def test_a_pixel_or_a_setting_gives_another_cache(single: Path, tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    settings = [
        SETTINGS,
        replace(SETTINGS, frame_size=24),
        replace(SETTINGS, frames=4),
        replace(SETTINGS, clahe_clip_limit=3.0),
    ]
    fingerprints = [run(single, caches, one).manifest.fingerprint for one in settings]
    path = min(single.rglob("*.png"))
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    image[0, 0] ^= 1
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    fingerprints.append(run(single, caches).manifest.fingerprint)
    assert len(set(fingerprints)) == 5
    assert {manifest.fingerprint for manifest in list_caches(caches)} == set(fingerprints)


PINNED_FINGERPRINT = "2c0fe71c133b4ac284baaf337f3e11bb5eb04ee1d4e40716646878bf1b1c31a9"


def test_the_fingerprint_of_a_fixed_dataset_is_pinned(tmp_path: Path) -> None:
    """A cache is found by its fingerprint: a change of this value makes every existing cache useless."""
    root = tmp_path / "videos"
    for subject, gray in (("anna", 40), ("ben", 200)):
        folder = root / subject / "joy" / "clip"
        folder.mkdir(parents=True)
        for number in range(2):
            # a format without a compressor, so that the bytes are the same with every library
            pixels = bytes([gray + number] * 64 * 64)
            (folder / f"{number}.pgm").write_bytes(b"P5 64 64 255\n" + pixels)
    settings = ClipSettings(
        frames=3,
        frame_size=16,
        detector="yunet",
        box=BoxChoice.MEDIAN,
        min_face_share=0.25,
        few_faces=FewFaces.KEEP,
        clahe_clip_limit=3.0,
        clahe_tiles=2,
    )
    assert (settings.frame_sampling, settings.windows) == (FrameSampling.LAST, 1)
    outcome = preprocess("video-folder", root, tmp_path / "caches", settings=settings, processes=1)
    assert outcome.manifest.fingerprint == PINNED_FINGERPRINT
    assert outcome.folder == tmp_path / "caches" / "video-folder" / PINNED_FINGERPRINT
    # The model card and `foldwise predict` read these keys from the manifest.
    assert outcome.manifest.settings == {
        "frames": 3,
        "frame_size": 16,
        "detector": "yunet",
        "box": "median",
        "least_faces": 0.25,
        "few_faces": "keep",
        "clahe_clip_limit": 3.0,
        "clahe_tiles": 2,
        "reader": {"manifest": "", "name": "video-folder", "colour": "yes"},
    }


def test_windows_are_cached_one_after_another_and_give_other_fingerprints(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    for subject in ("anna", "ben"):
        folder = root / subject / "joy" / "clip"
        folder.mkdir(parents=True)
        for number in range(7):
            (folder / f"{number}.pgm").write_bytes(b"P5 64 64 255\n" + bytes([10 * number] * 64 * 64))
    plain = ClipSettings(frames=3, frame_size=16, few_faces=FewFaces.KEEP)
    expected = {
        plain: [4, 5, 6],
        replace(plain, frame_sampling=FrameSampling.UNIFORM): [0, 3, 6],
        replace(plain, frame_sampling=FrameSampling.MIDDLE): [2, 3, 4],
        replace(plain, frame_sampling=FrameSampling.UNIFORM, windows=2): [0, 2, 5, 1, 4, 6],
        replace(plain, frame_sampling=FrameSampling.MIDDLE, windows=2): [0, 1, 2, 3, 4, 5],
    }
    fingerprints = set()
    for settings, numbers in expected.items():
        dataset = read_dataset("video-folder", root, {"colour": "no"})
        clips = [
            make_clip(each, settings=settings, detector=make_detector("yunet")) for each in dataset.sequences
        ]
        writer = CacheWriter(tmp_path / "caches", "faces", sha256_of(settings.as_dict()))
        for clip in clips:
            assert isinstance(clip, FaceClip)
            writer.add(clip.record, clip.plain, clip.clahe)
        manifest = writer.finish(
            clip_ids=[each.clip_id for each in dataset.sequences],
            classes=dataset.classes,
            settings=settings.as_dict(),
            tools={},
            skipped={},
            warnings=(),
        )
        fingerprints.add(manifest.fingerprint)
        cache = open_cache(tmp_path / "caches" / "faces" / manifest.fingerprint)
        assert (manifest.clips, manifest.frames, manifest.windows) == (2, 3, settings.windows)
        for record, frames in zip(cache.records, cache.frames(clahe=False), strict=True):
            assert frames[:, 0, 0].tolist() == [10 * number for number in numbers]
            assert [Path(name).stem for name in record.frames] == [str(number) for number in numbers]
        assert cache.windows(clahe=False).shape == (2 * settings.windows, 3, 16, 16)
        inspection = inspect_cache(cache)
        assert (inspection.windows, inspection.frame_sampling) == (settings.windows, settings.frame_sampling)
        assert [problem for check in inspection.checks if check.broken for problem in check.problems] == []
        save_contact_sheet(cache, tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.width >= 300 + 76 * len(numbers)
    assert len(fingerprints) == len(expected)


# --- killed -------------------------------------------------------------------------------------------------


@pytest.fixture
def killed(tree: Tree, tmp_path: Path) -> Path:
    """A cache root after a run that was killed in the middle, all of its processes gone."""
    caches = tmp_path / "killed"
    command = ["preprocess", "--dataset", "ckplus", "--root", str(tree.root), "--cache-root", str(caches)]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "cli.main", *command, "--frame-size", str(SIZE), "--processes", "1"],
            stdout=log,
            stderr=log,
        ) as process,
    ):
        while len(parts(caches)) < 2:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        handles = [os.pidfd_open(int(child)) for child in children]
        process.send_signal(signal.SIGKILL)
    assert handles
    for handle in handles:
        # A process that outlives its parent would wait for work for ever.
        ended, _, _ = select.select([handle], [], [], 30)
        os.close(handle)
        assert ended, "a process of a killed run lives on"
    return caches


def parts(caches: Path) -> list[Path]:
    return list(caches.glob("ckplus/.*.partial/parts/*.npz"))


def test_a_killed_run_is_gone_on_with_and_gives_the_same_bytes(
    tree: Tree, outcome: Outcome, killed: Path
) -> None:
    done = len(parts(killed))
    assert 2 <= done < 13
    assert list_caches(killed) == ()
    resumed = run(tree.root, killed)
    assert resumed.made == 13 - done
    assert content(resumed.folder) == content(outcome.folder)
    assert [path.name for path in resumed.folder.parent.iterdir()] == [resumed.folder.name]


def test_a_process_that_is_killed_ends_the_run_with_advice_and_keeps_what_is_done(
    tree: Tree, outcome: Outcome, tmp_path: Path
) -> None:
    ended = threading.Event()

    def kill_once_some_are_done() -> None:
        while len(parts(tmp_path)) < 2 and not ended.wait(0.005):
            pass
        for child in multiprocessing.active_children():
            child.kill()

    killer = threading.Thread(target=kill_once_some_are_done)
    killer.start()
    try:
        with pytest.raises(FoldwiseError, match=r"was killed, .* run the same again, with fewer processes"):
            run(tree.root, tmp_path)
    finally:
        ended.set()
        killer.join()
    done = len(parts(tmp_path))
    assert 0 < done < 13
    resumed = run(tree.root, tmp_path)
    assert resumed.made == 13 - done
    assert content(resumed.folder) == content(outcome.folder)


# --- refused ------------------------------------------------------------------------------------------------


def test_an_unknown_dataset_is_told(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"dataset is 'fer2013', which is not known; use one of: .*ckplus"):
        preprocess("fer2013", tree.root, tmp_path, settings=SETTINGS, processes=1)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_detector_is_told(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"detector is 'haar', which is not known; use one of: .*yunet"):
        run(tree.root, tmp_path, replace(SETTINGS, detector="haar"))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_root_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere, which does not exist"):
        run(tmp_path / "nowhere", tmp_path)


def test_a_tree_without_labels_is_told(single: Path, tmp_path: Path) -> None:
    for path in single.rglob("*_emotion.txt"):
        path.unlink()
    with pytest.raises(InvalidInput, match="holds no labelled sequence of ckplus"):
        run(single, tmp_path / "caches")


def test_the_reasons_of_rows_come_before_those_of_other_files(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    (root / "v").mkdir(parents=True)
    (root / "aaa.txt").write_text("unrelated")
    (root / "v" / "a.mp4").write_bytes(b"video")
    (root / "clips.csv").write_text("path,subject,label\nC:\\v\\a.mp4,anna,happy\nv\\gone.mp4,anna,happy\n")
    settings = {"manifest": "clips.csv"}
    with pytest.raises(InvalidInput) as refused:
        preprocess("video-folder", root, tmp_path, settings=SETTINGS, processes=1, reader_settings=settings)
    assert (
        "2 rows were skipped, such as clips.csv line 2: C:\\v\\a.mp4 is not there; give it relative to root; "
        "clips.csv line 3: v\\gone.mp4 is not there" in refused.value.message
    )


def test_no_process_is_too_few(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="processes is 0; give 1 or more"):
        run(tree.root, tmp_path, processes=0)


def test_a_tree_without_any_face_makes_no_cache(single: Path, tmp_path: Path) -> None:
    for path in single.rglob("*.png"):
        path.write_bytes(blank())
    with pytest.raises(FoldwiseError, match=r"no clip is left: .* no face in its last 3 frames"):
        run(single, tmp_path / "caches")
    assert list_caches(tmp_path / "caches") == ()
