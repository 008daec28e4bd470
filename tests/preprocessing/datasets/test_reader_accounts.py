"""No reader crashes on any tree, and none leaves anything out without a reason."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocessing.datasets.ckplus import read_ckplus
from preprocessing.datasets.crema_d import read_crema_d
from preprocessing.datasets.oulu_casia import read_oulu_casia
from preprocessing.datasets.ravdess import read_ravdess
from preprocessing.datasets.reader import Dataset
from preprocessing.datasets.registry import BUILT_IN
from preprocessing.datasets.video_folder import read_video_folder
from preprocessing.frames import read_last_frames
from services.errors import InvalidInput

Reader = Callable[[Path], Dataset]

Entries = list[tuple[list[bytes], str, bytes]]
"""Of a tree: the names on the way to it, what it is, what is in it."""

ODD = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8).map(
        str.encode
    ),
    st.binary(min_size=1, max_size=6).filter(lambda name: not set(name) & {0, ord("/")}),
    st.sampled_from([b".DS_Store", b"__MACOSX", b"._x.png", b"Thumbs.db", b"a:Zone.Identifier", b"x" * 255]),
).filter(lambda name: name not in {b".", b".."})

CKPLUS = (
    [b"CK+", b"cohn-kanade-images", b"Emotion", b"FACS"],
    [b"S005", b"s005", b"S999", b"S00\xd9\xa5"],
    [b"001", b"002", b"1"],
    [
        *(b"S005_001_%08d.png" % number for number in (1, 2, 9)),
        *(b"S005_001_2.png", b"S005_001_00000009_emotion.txt", b"S005_002_1.PNG", b"S005_002_1_emotion.txt"),
    ],
)
OULU = (
    [b"OriginalImg", b"VL", b"NI", b"vl"],
    [b"Strong", b"Weak", b"strong", b"VL"],
    [b"P001", b"p001", b"P080"],
    [b"Anger", b"anger", b"Happiness", b"Contempt", b"000.jpeg", b"001.jpg", b"1.jpeg", b"0010.png"],
)
RAVDESS = (
    [b"Video_Speech_Actor_01", b"Actor_01", b"ACTOR02", b"Audio_Speech_Actors_01-24"],
    [b"Actor_01", b"actor_1", b"Video_Song_Actor_02.zip"],
    [
        *(b"%02d-01-05-01-01-01-01.mp4" % modality for modality in range(4)),
        *(b"01-02-09-03-01-01-01.MP4", b"01-01-05-01-01-01-99.mov", b"03-01-05-01-01-01-01.wav"),
        *(b"01-01-05-01-01-01.mp4", b"01-01-05-01-01-01-0\xd9\xa1.mp4"),
    ],
)
CREMA_D = (
    [b"CREMA-D", b"VideoFlash", b"AudioWAV", b"videos"],
    [
        *(b"1001_DFA_ANG_XX.flv", b"1001_dfa_ang_x.FLV", b"1001_DFA_ANG_XX.mp4", b"1002_IEO_NEU_LO.flv"),
        *(b"1001_DFA_JOY_XX.flv", b"1001_DFA_ANG_XX.wav", b"1001_DFA_ANG.flv", b"readme.md"),
    ],
)
VIDEOS = (
    [b"anna", b"Zo\xc3\xab", b"Zoe\xcc\x88", b"\xff\xfe"],
    [b"happy", b"Happy", b" ", b"sad"],
    [b"one.mp4", b"two.MOV", b"walk", b"0.png", b"clips.csv"],
    [b"1.png", b"2.jpg", b"10.png", b"one.avi", b"deep"],
)

LIST = "list.csv"

CONTENTS = st.sampled_from(
    [b"", b"junk", b"   3.0000000e+00\n", b"nan", b"1e999", b"\xff\xfe\x00", b"\x89PNG\r\n\x1a\n", b"9" * 5000]
)
KINDS = st.sampled_from(
    ["file", "file", "file", "folder", "link to nothing", "link to the top", "link", "pipe"]
)


def trees(layout: tuple[list[bytes], ...]) -> st.SearchStrategy[Entries]:
    """Entries of a tree, most with names that mean something to the reader, at any depth."""
    meant = [st.sampled_from(level) for level in layout]
    path = st.one_of(
        *(st.tuples(*meant[: depth + 1]).map(list) for depth in range(len(meant))),
        st.tuples(st.just(layout[0][1]), *meant[1:]).map(list),
        st.lists(st.one_of(ODD, *meant), min_size=1, max_size=9),
        st.tuples(*meant[:-1], ODD).map(list),
    )
    return st.lists(st.tuples(path, KINDS, CONTENTS), max_size=25)


def build(root: Path, entries: Entries) -> None:
    """What cannot be made, since a part of its path is a file or too long, is left out."""
    for names, kind, content in entries:
        path = os.path.join(os.fsencode(root), *names)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if kind == "folder":
                os.makedirs(path)
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind == "file":
                with open(path, "xb") as file:
                    file.write(content)
            else:
                targets = {
                    "link to nothing": b"nowhere",
                    "link to the top": os.fsencode(root),
                    "link": names[0],
                }
                os.symlink(targets[kind], path)
        except OSError:
            continue


def everything(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        yield from (Path(folder) / name for name in folders + files)


LABEL_FILE = re.compile(r"(S[0-9]+_[0-9]+)_[0-9]+_emotion\.txt", re.IGNORECASE)


def check_account(root: Path, dataset: Dataset) -> None:
    used = {path for sequence in dataset.sequences for path in sequence.files}
    ids = {sequence.clip_id for sequence in dataset.sequences}
    skipped = {skip.path for skip in dataset.skipped}
    holders = {parent for path in used | skipped for parent in path.parents}
    for path in everything(root):
        told = path in used | skipped | holders or any(parent in skipped for parent in path.parents)
        label = LABEL_FILE.fullmatch(path.name)
        is_label = label is not None and label[1].upper() in ids
        holds_labels_only = path.is_dir() and all(
            LABEL_FILE.fullmatch(file.name) or file.is_dir() for file in path.rglob("*")
        )
        assert told or is_label or holds_labels_only or path.name == LIST, f"{path} is neither used nor skipped"
    assert all(skip.reason for skip in dataset.skipped)
    assert not used & {skip.path for skip in dataset.skipped if not skip.part}


def check_text(root: Path, dataset: Dataset) -> None:
    """All of it can be stored and shown."""
    for sequence in dataset.sequences:
        for text in (sequence.clip_id, sequence.subject, sequence.label, sequence.source):
            assert text
            text.encode()
        assert sequence.label in dataset.classes
    json.dumps(dataset.reasons(root), ensure_ascii=False).encode()
    assert len({sequence.clip_id for sequence in dataset.sequences}) == len(dataset.sequences)
    assert list(dataset.sequences) == sorted(dataset.sequences, key=lambda sequence: sequence.clip_id)


def check_frames(dataset: Dataset) -> None:
    for sequence in dataset.sequences:
        read = read_last_frames(sequence, 10, colour=dataset.colour)
        assert len(read.frames) <= 10
        assert read.frames or read.flags or sequence.video


def read_list(root: Path) -> Dataset:
    return read_video_folder(root, manifest=LIST)


ROWS = st.lists(
    st.lists(st.one_of(ODD, *(st.sampled_from(level) for level in VIDEOS)), max_size=6).map(b",".join),
    max_size=8,
)
LISTS = st.one_of(ROWS.map(b"\n".join), st.binary(max_size=40)).map(
    lambda rows: b"path,subject,label,start,end\n" + rows
)


def one(name: bytes, content: bytes) -> tuple[list[bytes], str, bytes]:
    return name.split(b"/"), "file", content


SETS: dict[Reader, st.SearchStrategy[Entries]] = {
    read_ckplus: trees(CKPLUS).map(
        lambda entries: [
            one(b"cohn-kanade-images/S010/001/S010_001_00000001.png", b"png"),
            one(b"Emotion/S010/001/S010_001_00000001_emotion.txt", b"3.0"),
            *entries,
        ]
    ),
    read_oulu_casia: trees(OULU).map(lambda entries: [one(b"VL/Strong/P010/Fear/000.jpeg", b"jpeg"), *entries]),
    read_ravdess: trees(RAVDESS).map(
        lambda entries: [one(b"Actor_10/01-01-05-01-01-01-10.mp4", b"mp4"), *entries]
    ),
    read_crema_d: trees(CREMA_D).map(
        lambda entries: [one(b"VideoFlash/1010_DFA_ANG_XX.flv", b"flv"), *entries]
    ),
    read_video_folder: trees(VIDEOS),
    read_list: st.tuples(LISTS, trees(VIDEOS)).map(lambda both: [one(LIST.encode(), both[0]), *both[1]]),
}
"""Readers, and random trees for each."""


def check_one(read: Reader, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        root.mkdir()
        build(root, data.draw(SETS[read]))
        try:
            dataset = read(root)
        except InvalidInput as refused:
            if refused.field not in {"root", "manifest"}:
                raise
            return
        check_account(root, dataset)
        check_text(root, dataset)
        check_frames(dataset)
        assert read(root) == dataset


def test_every_reader_of_foldwise_has_random_trees() -> None:
    assert set(BUILT_IN.values()) <= set(SETS)


@pytest.mark.parametrize("read", SETS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_trees(read: Reader, data: st.DataObject) -> None:
    check_one(read, data)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("read", SETS)
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_many_random_trees(read: Reader, data: st.DataObject) -> None:
    check_one(read, data)


@pytest.mark.parametrize("read", [read_ckplus, read_oulu_casia, read_ravdess, read_crema_d])
def test_an_empty_root_is_refused(tmp_path: Path, read: Reader) -> None:
    with pytest.raises(InvalidInput):
        read(tmp_path)
    assert read_video_folder(tmp_path).sequences == ()
