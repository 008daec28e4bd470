"""The clip cache: written once, the same bytes whatever the path there, and refused when it is not whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.clip_cache import (
    CLAHE,
    INDEX,
    MANIFEST,
    PLAIN,
    CacheManifest,
    CacheRecord,
    Frames,
    cache_folder,
    find_cache,
    list_caches,
    open_cache,
    sha256_of_file,
)
from services.clip_cache_writer import CacheWriter
from services.errors import CacheMismatch, FoldwiseError
from services.folds import Clip

FINGERPRINT = "ab" * 32
CLASSES = ("happy", "anger", "fear")
IDS = ("S1_1", "S1_2", "S2_1", "S3_1")
LABELS = {"S1_1": "anger", "S1_2": "happy", "S2_1": "anger", "S3_1": "happy"}


def record(clip_id: str, **changes: Any) -> CacheRecord:
    base: dict[str, Any] = {
        "clip_id": clip_id,
        "subject": clip_id.split("_", maxsplit=1)[0],
        "label": LABELS.get(clip_id, "happy"),
        "source": f"images/{clip_id}",
        "frames": ("7.png", "8.png", "8.png"),
        "detector": "yunet",
        "boxes": ((1.0, 2.5, 30.0, 40.1), None, None),
        "confidences": (0.9123, None, None),
        "repeated": 1,
        "flags": ("no face in 1 of 2 frames",),
    }
    return CacheRecord.model_validate({**base, **changes})


def frames_of(clip_id: str, *, channels: int = 1) -> Frames:
    rng = np.random.default_rng(list(clip_id.encode()))
    shape = (3, 8, 8) if channels == 1 else (3, 8, 8, channels)
    return rng.integers(0, 256, size=shape, dtype=np.uint8)


def add(writer: CacheWriter, clip_id: str, *, channels: int = 1) -> None:
    plain = frames_of(clip_id, channels=channels)
    writer.add(record(clip_id), plain, 255 - plain)


def finish(writer: CacheWriter, clip_ids: Iterable[str] = IDS) -> CacheManifest:
    return writer.finish(
        clip_ids=tuple(clip_ids),
        classes=CLASSES,
        settings={"frames": 3},
        tools={"opencv": "4"},
        skipped={"images/S9/001": "no label folder"},
        warnings=("incomplete",),
    )


def write_cache(
    root: Path, *, dataset: str = "faces", fingerprint: str = FINGERPRINT, channels: int = 1
) -> Path:
    writer = CacheWriter(root, dataset, fingerprint)
    for clip_id in IDS:
        add(writer, clip_id, channels=channels)
    finish(writer)
    return cache_folder(root, dataset, fingerprint)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_manifest(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}), encoding="utf-8")


# --- written and read ---------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    cache = open_cache(write_cache(tmp_path))
    assert cache.records == tuple(record(clip_id) for clip_id in IDS)
    plain, clahe = cache.frames(clahe=False), cache.frames(clahe=True)
    assert plain.shape == (4, 3, 8, 8)
    assert plain.dtype == clahe.dtype == np.uint8
    for row, clip_id in enumerate(IDS):
        np.testing.assert_array_equal(plain[row], frames_of(clip_id))
        np.testing.assert_array_equal(clahe[row], 255 - frames_of(clip_id))
    manifest = cache.manifest
    assert (manifest.clips, manifest.subjects, manifest.frames) == (4, 3, 3)
    assert (manifest.frame_size, manifest.channels) == (8, 1)
    assert manifest.class_counts == {"happy": 2, "anger": 2, "fear": 0}
    assert manifest.skipped == {"images/S9/001": "no label folder"}
    assert manifest.warnings == ("incomplete",)
    assert set(manifest.files) == {PLAIN, CLAHE, INDEX}


def test_labels_are_numbers_in_the_order_of_the_classes(tmp_path: Path) -> None:
    assert open_cache(write_cache(tmp_path)).clips() == (
        Clip(clip_id="S1_1", subject="S1", label=1),
        Clip(clip_id="S1_2", subject="S1", label=0),
        Clip(clip_id="S2_1", subject="S2", label=1),
        Clip(clip_id="S3_1", subject="S3", label=0),
    )


def test_colour_clips_keep_their_three_channels(tmp_path: Path) -> None:
    cache = open_cache(write_cache(tmp_path, channels=3))
    assert cache.manifest.channels == 3
    assert cache.frames(clahe=False).shape == (4, 3, 8, 8, 3)
    np.testing.assert_array_equal(cache.frames(clahe=False)[3], frames_of("S3_1", channels=3))


def test_frames_cannot_be_written_to(tmp_path: Path) -> None:
    frames = open_cache(write_cache(tmp_path)).frames(clahe=False)
    with pytest.raises(ValueError, match="read-only"):
        frames[0] = 0


def test_nothing_but_the_cache_is_left(tmp_path: Path) -> None:
    folder = write_cache(tmp_path)
    assert [path.name for path in folder.parent.iterdir()] == [FINGERPRINT]
    assert set(content(folder)) == {PLAIN, CLAHE, INDEX, MANIFEST}


# --- killed and gone on -------------------------------------------------------------------------------------


def test_a_second_writer_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    first = CacheWriter(tmp_path, "faces", FINGERPRINT)
    add(first, "S1_2")
    first.drop("S2_1", "no face")
    second = CacheWriter(tmp_path, "faces", FINGERPRINT)
    assert [second.has(clip_id) for clip_id in IDS] == [False, True, True, False]
    assert list_caches(tmp_path) == ()
    add(second, "S1_1")
    add(second, "S3_1")
    manifest = finish(second)
    assert manifest.clips == 3
    assert manifest.dropped == {"S2_1": "no face"}


def test_a_part_that_was_being_written_when_killed_does_not_count(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, "faces", FINGERPRINT)
    add(writer, "S1_1")
    (part,) = writer.working.rglob("*.npz")
    part.rename(part.with_suffix(".4711.tmp"))
    assert not CacheWriter(tmp_path, "faces", FINGERPRINT).has("S1_1")


def test_another_fingerprint_shares_nothing(tmp_path: Path) -> None:
    add(CacheWriter(tmp_path, "faces", FINGERPRINT), "S1_1")
    assert not CacheWriter(tmp_path, "faces", "cd" * 32).has("S1_1")
    assert not CacheWriter(tmp_path, "other", FINGERPRINT).has("S1_1")


@given(order=st.permutations(IDS), runs=st.lists(st.integers(0, 4), max_size=3))
@settings(max_examples=12, deadline=None)
def test_the_bytes_do_not_depend_on_the_order_or_the_number_of_runs(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], runs: list[int]
) -> None:
    root = tmp_path_factory.mktemp("caches")
    writer = CacheWriter(root, "faces", FINGERPRINT)
    for place, clip_id in enumerate(order):
        if place in runs:
            writer = CacheWriter(root, "faces", FINGERPRINT)
        add(writer, clip_id)
        add(writer, clip_id)
    finish(writer)
    straight = write_cache(root, dataset="faces2")
    ours, theirs = content(cache_folder(root, "faces", FINGERPRINT)), content(straight)
    assert ours.pop(MANIFEST) == theirs.pop(MANIFEST).replace(b'"faces2"', b'"faces"')
    assert ours == theirs
    shutil.rmtree(root)


def test_a_finish_that_was_killed_is_done_again(tmp_path: Path) -> None:
    expected = content(write_cache(tmp_path / "straight"))
    writer = CacheWriter(tmp_path, "faces", FINGERPRINT)
    for clip_id in IDS:
        add(writer, clip_id)
    half_joined = writer.working / "final"
    half_joined.mkdir()
    (half_joined / PLAIN).write_bytes(b"torn")
    (half_joined / "left.over").write_bytes(b"")
    finish(CacheWriter(tmp_path, "faces", FINGERPRINT))
    assert content(cache_folder(tmp_path, "faces", FINGERPRINT)) == expected


def test_dropped_clips_are_recorded_and_leave_no_hole(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, "faces", FINGERPRINT)
    for clip_id in ("S1_1", "S3_1"):
        add(writer, clip_id)
    writer.drop("S1_2", "no face in its last 10 frames")
    writer.drop("S2_1", "none of its frames can be read as an image")
    finish(writer)
    cache = open_cache(writer.target)
    assert [r.clip_id for r in cache.records] == ["S1_1", "S3_1"]
    np.testing.assert_array_equal(cache.frames(clahe=False)[1], frames_of("S3_1"))
    assert cache.manifest.dropped == {
        "S1_2": "no face in its last 10 frames",
        "S2_1": "none of its frames can be read as an image",
    }


def test_a_cache_without_a_clip_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, "faces", FINGERPRINT)
    writer.drop("S1_1", "no face in its last 10 frames")
    with pytest.raises(FoldwiseError, match=r"no clip is left: .* no face in its last 10 frames"):
        finish(writer, ["S1_1"])
    with pytest.raises(FoldwiseError, match=r"no clip is left: .* the dataset is empty"):
        finish(writer, [])
    assert not writer.target.exists()


@pytest.mark.parametrize("clip_id", ["../../escape", "a/b", "CON", "ü" * 300, " ", "line\nbreak", "S1_1.npz"])
def test_any_clip_id_is_a_safe_file_name(tmp_path: Path, clip_id: str) -> None:
    writer = CacheWriter(tmp_path / "caches", "faces", FINGERPRINT)
    writer.add(record(clip_id), frames_of("S1_1"), frames_of("S1_1"))
    assert writer.has(clip_id)
    assert [path.name for path in tmp_path.iterdir()] == ["caches"]
    finish(writer, [clip_id])
    assert open_cache(writer.target).records[0].clip_id == clip_id


# --- refused ------------------------------------------------------------------------------------------------


def test_a_folder_without_a_manifest_is_no_cache(tmp_path: Path) -> None:
    folder = write_cache(tmp_path)
    (folder / MANIFEST).unlink()
    with pytest.raises(CacheMismatch, match=r"is no finished clip cache: it has no manifest\.json"):
        open_cache(folder)
    with pytest.raises(CacheMismatch, match="is no finished clip cache"):
        open_cache(tmp_path / "nowhere" / FINGERPRINT)


@pytest.mark.parametrize("name", [PLAIN, CLAHE, INDEX])
def test_a_changed_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_cache(tmp_path)
    changed = bytearray((folder / name).read_bytes())
    changed[-2] ^= 1
    (folder / name).write_bytes(changed)
    with pytest.raises(CacheMismatch, match=f"{name} is not as it was written; delete"):
        open_cache(folder)


@pytest.mark.parametrize("name", [PLAIN, CLAHE, INDEX])
@pytest.mark.parametrize("verify", [True, False])
def test_a_lost_file_is_refused_even_unverified(tmp_path: Path, name: str, verify: bool) -> None:
    folder = write_cache(tmp_path)
    (folder / name).unlink()
    with pytest.raises(CacheMismatch, match=f"has lost {name}"):
        open_cache(folder, verify=verify)


def test_a_renamed_cache_is_refused(tmp_path: Path) -> None:
    folder = write_cache(tmp_path)
    renamed = folder.rename(folder.with_name("cd" * 32))
    with pytest.raises(CacheMismatch, match=f"holds the cache faces/{FINGERPRINT}, not its own"):
        open_cache(renamed)


def test_a_cache_under_another_dataset_is_refused(tmp_path: Path) -> None:
    folder = write_cache(tmp_path)
    folder.parent.rename(tmp_path / "others")
    with pytest.raises(CacheMismatch, match="not its own"):
        open_cache(tmp_path / "others" / FINGERPRINT)


def test_a_cache_of_an_earlier_foldwise_is_read(tmp_path: Path) -> None:
    folder = write_cache(tmp_path)
    edit_manifest(folder, format_version=1)
    assert open_cache(folder).manifest.format_version == 1


def test_another_format_is_refused(tmp_path: Path) -> None:
    folder = write_cache(tmp_path)
    edit_manifest(folder, format_version=3)
    with pytest.raises(CacheMismatch, match="has cache format 3, this foldwise reads 1 and 2; "):
        open_cache(folder)


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff\xfe\x81", b'{"clips": "many"}', b"null"])
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, text: bytes) -> None:
    folder = write_cache(tmp_path)
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(CacheMismatch, match="cannot be read as a manifest; preprocess again"):
        open_cache(folder)
    assert list_caches(tmp_path) == ()


@pytest.mark.parametrize("change", [{"clips": 5}, {"frames": 10}, {"frame_size": 112}, {"channels": 3}])
def test_arrays_that_are_not_what_the_manifest_says_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    folder = write_cache(tmp_path)
    edit_manifest(folder, **change)
    with pytest.raises(CacheMismatch, match=r"holds arrays of shape \(4, 3, 8, 8\), its manifest says"):
        open_cache(folder)


def test_unverified_opening_does_not_hash(tmp_path: Path) -> None:
    folder = write_cache(tmp_path)
    edit_manifest(folder, files=dict.fromkeys((PLAIN, CLAHE, INDEX), "0" * 64))
    assert len(open_cache(folder, verify=False).records) == 4
    with pytest.raises(CacheMismatch):
        open_cache(folder)


def test_the_manifest_holds_the_hashes_of_the_files(tmp_path: Path) -> None:
    folder = write_cache(tmp_path)
    for name, expected in open_cache(folder).manifest.files.items():
        assert sha256_of_file(folder / name) == expected


# --- listed and found ---------------------------------------------------------------------------------------


def test_the_list_holds_finished_caches_in_order_and_nothing_else(tmp_path: Path) -> None:
    assert list_caches(tmp_path / "nowhere") == ()
    write_cache(tmp_path, dataset="zoo")
    write_cache(tmp_path, fingerprint="cd" * 32)
    write_cache(tmp_path)
    add(CacheWriter(tmp_path, "partial", FINGERPRINT), "S1_1")
    broken = write_cache(tmp_path, dataset="broken")
    edit_manifest(broken, format_version=3)
    hidden = write_cache(tmp_path, dataset="hidden")
    hidden.rename(hidden.with_name(f".{FINGERPRINT}.partial"))
    (tmp_path / "file.txt").write_text("stray")
    assert [(m.dataset, m.fingerprint[:2]) for m in list_caches(tmp_path)] == [
        ("faces", "ab"),
        ("faces", "cd"),
        ("zoo", "ab"),
    ]


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    for dataset, fingerprint in (("ckplus", "ab" * 32), ("ckplus", "ac" * 32), ("oulu", "ab" * 32)):
        write_cache(tmp_path, dataset=dataset, fingerprint=fingerprint)
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "dataset", "fingerprint"),
    [
        ("oulu", "oulu", "ab" * 32),
        ("oulu/", "oulu", "ab" * 32),
        ("ckplus/ac", "ckplus", "ac" * 32),
        ("ckplus/" + "ab" * 32, "ckplus", "ab" * 32),
    ],
)
def test_a_cache_goes_by_dataset_or_by_the_start_of_its_fingerprint(
    caches: Path, wanted: str, dataset: str, fingerprint: str
) -> None:
    found = find_cache(caches, wanted)
    assert (found.dataset, found.fingerprint) == (dataset, fingerprint)


@pytest.mark.parametrize("wanted", ["ckplus", "ckplus/a"])
def test_a_name_for_several_caches_lists_them(caches: Path, wanted: str) -> None:
    with pytest.raises(CacheMismatch, match="names 2 clip caches; say which: ") as refused:
        find_cache(caches, wanted)
    assert "ckplus/abababababab, ckplus/acacacacacac" in refused.value.message
    assert "oulu" not in refused.value.message
    assert refused.value.field == "cache"


@pytest.mark.parametrize("wanted", ["fer2013", "oulu/ac", "ck", "/ab", ""])
def test_a_name_for_no_cache_lists_those_there_are(caches: Path, wanted: str) -> None:
    with pytest.raises(CacheMismatch, match="no clip cache ") as refused:
        find_cache(caches, wanted)
    for name in ("ckplus/abababababab", "ckplus/acacacacacac", "oulu/abababababab"):
        assert name in refused.value.message


def test_without_any_cache_the_message_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CacheMismatch, match=r"there are: none\); make it with `foldwise preprocess`"):
        find_cache(tmp_path, "ckplus")


# --- the index ----------------------------------------------------------------------------------------------

odd = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", ",", '"', "\n", "\r", "\r\n", "a\rb", "é,ü", '""', "[1]", "None", " x ", "=1+1", "日本", "\0"]
    ),
)
numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 1))
rows = st.builds(
    CacheRecord,
    clip_id=odd,
    subject=odd,
    label=odd,
    source=odd,
    frames=st.lists(odd, max_size=3).map(tuple),
    detector=odd,
    boxes=st.lists(st.none() | st.tuples(numbers, numbers, numbers, numbers), max_size=3).map(tuple),
    confidences=st.lists(st.none() | st.floats(0, 1), max_size=3).map(tuple),
    repeated=st.integers(0, 300),
    flags=st.lists(odd, max_size=3).map(tuple),
)


@given(records=st.lists(rows, min_size=1, max_size=4, unique_by=lambda r: r.clip_id))
@settings(max_examples=60, deadline=None)
def test_every_record_survives_the_index(
    tmp_path_factory: pytest.TempPathFactory, records: list[CacheRecord]
) -> None:
    root = tmp_path_factory.mktemp("index")
    writer = CacheWriter(root, "faces", FINGERPRINT)
    pixels = np.zeros((1, 1, 1), np.uint8)
    for one in records:
        writer.add(one, pixels, pixels)
    finish(writer, [one.clip_id for one in records])
    assert open_cache(writer.target).records == tuple(records)
    shutil.rmtree(root)
