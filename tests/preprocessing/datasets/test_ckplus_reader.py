"""The CK+ reader, on trees with the traps that copies of CK+ have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from preprocessing.datasets.ckplus import CLASSES, COMPLETE_COUNTS, read_ckplus
from preprocessing.datasets.reader import Dataset
from services.errors import InvalidInput, NotFound

HAPPY = "   5.0000000e+00\n"


def add_frames(root: Path, subject: str, number: str, frames: range | list[int]) -> Path:
    folder = root / "cohn-kanade-images" / subject / number
    folder.mkdir(parents=True, exist_ok=True)
    for frame in frames:
        (folder / f"{subject}_{number}_{frame:08d}.png").write_bytes(b"png")
    return folder


def add_label(root: Path, subject: str, number: str, last: int, text: str | None) -> Path:
    """An empty label folder where `text` is None."""
    folder = root / "Emotion" / subject / number
    folder.mkdir(parents=True, exist_ok=True)
    if text is not None:
        (folder / f"{subject}_{number}_{last:08d}_emotion.txt").write_text(text)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One good sequence."""
    add_frames(tmp_path, "S005", "001", range(1, 12))
    add_label(tmp_path, "S005", "001", 11, HAPPY)
    return tmp_path


def reasons(dataset: Dataset) -> dict[str, str]:
    return {"/".join(skip.path.parts[-3:]): skip.reason for skip in dataset.skipped}


def test_reads_a_sequence(root: Path) -> None:
    dataset = read_ckplus(root)
    assert dataset.name == "ckplus"
    assert dataset.classes == ("anger", "disgust", "fear", "happy", "sadness", "surprise", "contempt")
    (sequence,) = dataset.sequences
    assert (sequence.clip_id, sequence.subject, sequence.label) == ("S005_001", "S005", "happy")
    assert len(sequence.frames) == 11
    assert sequence.frames[0] == root / "cohn-kanade-images/S005/001/S005_001_00000001.png"
    assert all(frame.is_absolute() for frame in sequence.frames)
    assert dataset.skipped == ()


@pytest.mark.parametrize(
    ("code", "label"),
    [(1, "anger"), (2, "contempt"), (3, "disgust"), (4, "fear"), (5, "happy"), (6, "sadness"), (7, "surprise")],
)
def test_codes(root: Path, code: int, label: str) -> None:
    add_label(root, "S005", "001", 11, f"   {code:.7e}\n")
    assert [sequence.label for sequence in read_ckplus(root).sequences] == [label]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_label_as_editors_save_it(root: Path, encoding: str) -> None:
    [label] = (root / "Emotion").rglob("*.txt")
    label.write_bytes(HAPPY.encode(encoding))
    (sequence,) = read_ckplus(root).sequences
    assert sequence.label == "happy"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("   0.0000000e+00\n", "neutral"),
        ("   8.0000000e+00\n", "'8.0000000e+00' is not a code"),
        ("-1", "'-1' is not a code"),
        ("2.5", "'2.5' is not a code"),
        ("nan", "'nan' is not a code"),
        ("inf", "'inf' is not a code"),
        ("happy", "'happy' is not a number"),
        ("", "'' is not a number"),
        ("\xff\xfe", "is not a number"),
    ],
)
def test_other_labels_are_skipped_with_a_reason(root: Path, text: str, reason: str) -> None:
    (add_label(root, "S005", "001", 11, None) / "S005_001_00000011_emotion.txt").write_bytes(
        text.encode("latin-1")
    )
    dataset = read_ckplus(root)
    assert dataset.sequences == ()
    assert reason in reasons(dataset)["cohn-kanade-images/S005/001"]


def test_an_empty_label_folder_means_unlabelled(root: Path) -> None:
    add_frames(root, "S005", "002", range(1, 5))
    add_label(root, "S005", "002", 4, None)
    add_frames(root, "S999", "001", range(1, 5))
    dataset = read_ckplus(root)
    assert [sequence.clip_id for sequence in dataset.sequences] == ["S005_001"]
    assert reasons(dataset) == {
        "cohn-kanade-images/S005/002": "no label file: its label folder is empty",
        "cohn-kanade-images/S999/001": "no label folder",
    }


def test_a_label_without_images_is_skipped(root: Path) -> None:
    add_label(root, "S010", "003", 14, HAPPY)
    add_frames(root, "S011", "001", [])
    add_label(root, "S011", "001", 14, HAPPY)
    add_frames(root, "S012", "001", [])
    found = reasons(read_ckplus(root))
    assert found["Emotion/S010/003"].startswith("a label and no images")
    assert found["cohn-kanade-images/S011/001"].startswith("a label and no images")
    assert found["cohn-kanade-images/S012/001"].startswith("no label and no images")


def test_stray_files_are_left_out_with_a_reason(root: Path) -> None:
    images = root / "cohn-kanade-images"
    labels = root / "Emotion"
    for stray in (
        images / ".DS_Store",
        images / "S005" / ".DS_Store",
        images / "S005/001/.DS_Store",
        images / "S005/001/Thumbs.db",
        images / "S005/001/S005_001_00000012.png.baiduyun.uploading.cfg",
        images / "S005/001/S005_001_00000001.png:Zone.Identifier",
        images / "S005/001/._S005_001_00000001.png",
        images / "S005/001/S006_001_00000001.png",
        labels / "S005/001/.DS_Store",
        labels / "S005/001/._S005_001_00000011_emotion.txt",
        labels / "S005/001/AAA_first_of_all.txt",
    ):
        stray.write_bytes(b"stray")
    (images / "S005/001/S005_001_00000013.png").mkdir()
    (images / "Licence").mkdir()
    (images / "S005/notes").mkdir()
    dataset = read_ckplus(root)
    (sequence,) = dataset.sequences
    assert len(sequence.frames) == 11
    assert sequence.label == "happy"
    system = "hidden, or left by an operating system"
    assert dataset.reasons(root) == {
        "cohn-kanade-images/.DS_Store": system,
        "cohn-kanade-images/S005/.DS_Store": system,
        "cohn-kanade-images/S005/001/.DS_Store": system,
        "cohn-kanade-images/S005/001/Thumbs.db": system,
        "cohn-kanade-images/S005/001/S005_001_00000012.png.baiduyun.uploading.cfg": (
            "a file that is not part of the layout of CK+"
        ),
        "cohn-kanade-images/S005/001/S005_001_00000001.png:Zone.Identifier": system,
        "cohn-kanade-images/S005/001/._S005_001_00000001.png": system,
        "cohn-kanade-images/S005/001/S006_001_00000001.png": "an image that does not belong in this folder",
        "cohn-kanade-images/S005/001/S005_001_00000013.png": "a folder named like an image",
        "cohn-kanade-images/Licence": "a folder that is not part of the layout of CK+",
        "cohn-kanade-images/S005/notes": "a folder that is not part of the layout of CK+",
        "Emotion/S005/001/.DS_Store": system,
        "Emotion/S005/001/._S005_001_00000011_emotion.txt": system,
        "Emotion/S005/001/AAA_first_of_all.txt": "a file that is not part of the layout of CK+",
    }


def test_frames_are_ordered_by_number(tmp_path: Path) -> None:
    folder = add_frames(tmp_path, "S005", "001", [])
    for name in ("S005_001_100.png", "S005_001_0007.png", "S005_001_20.PNG", "S005_001_000000009.png"):
        (folder / name).write_bytes(b"png")
    add_label(tmp_path, "S005", "001", 100, HAPPY)
    (sequence,) = read_ckplus(tmp_path).sequences
    assert [int(frame.stem.rsplit("_", 1)[1]) for frame in sequence.frames] == [7, 9, 20, 100]


def test_labels_that_contradict_each_other(root: Path) -> None:
    add_label(root, "S005", "001", 10, "   3.0000000e+00\n")
    assert "contradict" in reasons(read_ckplus(root))["cohn-kanade-images/S005/001"]


def test_a_sequence_cut_short_is_told(root: Path) -> None:
    add_frames(root, "S006", "001", range(1, 9))
    add_label(root, "S006", "001", 20, HAPPY)
    dataset = read_ckplus(root)
    assert len(dataset.sequences) == 2
    assert any("In 1 sequences" in warning and "S006_001" in warning for warning in dataset.warnings)


def test_sequences_are_ordered_by_clip_id(root: Path) -> None:
    for subject, number in (("S999", "001"), ("S010", "002"), ("S010", "001")):
        add_frames(root, subject, number, range(3))
        add_label(root, subject, number, 2, HAPPY)
    ids = [sequence.clip_id for sequence in read_ckplus(root).sequences]
    assert ids == ["S005_001", "S010_001", "S010_002", "S999_001"]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_root_may_be_two_levels_above(tmp_path: Path, depth: int) -> None:
    holder = tmp_path.joinpath(*["downloads", "CK+"][:depth])
    add_frames(holder, "S005", "001", range(1, 3))
    add_label(holder, "S005", "001", 2, HAPPY)
    add_frames(tmp_path / "__MACOSX", "S005", "001", [])
    add_label(tmp_path / "__MACOSX", "S005", "001", 2, None)
    assert len(read_ckplus(tmp_path).sequences) == 1


def test_three_levels_are_too_many(tmp_path: Path) -> None:
    add_frames(tmp_path / "a/b/c", "S005", "001", range(1, 3))
    add_label(tmp_path / "a/b/c", "S005", "001", 2, HAPPY)
    with pytest.raises(InvalidInput, match=r"cohn-kanade-images.*Emotion") as refused:
        read_ckplus(tmp_path)
    assert refused.value.field == "root"


def test_two_sets_side_by_side_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        add_frames(tmp_path / name, "S005", "001", range(1, 3))
        add_label(tmp_path / name, "S005", "001", 2, HAPPY)
    with pytest.raises(InvalidInput, match="several folders"):
        read_ckplus(tmp_path)


def test_a_missing_root(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        read_ckplus(tmp_path / "nowhere")


def test_a_file_as_root(tmp_path: Path) -> None:
    (tmp_path / "CK+.zip").write_bytes(b"zip")
    with pytest.raises(InvalidInput, match="is a file"):
        read_ckplus(tmp_path / "CK+.zip")


def test_an_incomplete_set_is_told_in_one_sentence(root: Path) -> None:
    (warning,) = read_ckplus(root).warnings
    assert "1 sequences instead of 327" in warning
    assert "1 subjects instead of 118" in warning
    assert "1 happy instead of 69" in warning


def test_the_complete_set_is_read_without_a_warning(tmp_path: Path) -> None:
    codes = {"anger": 1, "contempt": 2, "disgust": 3, "fear": 4, "happy": 5, "sadness": 6, "surprise": 7}
    labels = [label for label in CLASSES for _ in range(COMPLETE_COUNTS[label])]
    for index, label in enumerate(labels):
        subject, number = f"S{3 * (index % 118) + 5:03d}", f"{index // 118 + 1:03d}"
        add_frames(tmp_path, subject, number, [1])
        add_label(tmp_path, subject, number, 1, f"   {codes[label]:.7e}\n")
    dataset = read_ckplus(tmp_path)
    assert len(dataset.sequences) == 327
    assert dataset.warnings == ()


def test_a_source_is_the_same_wherever_the_root_is(tmp_path: Path) -> None:
    add_frames(tmp_path / "a/b", "S005", "001", range(1, 3))
    add_label(tmp_path / "a/b", "S005", "001", 2, HAPPY)
    sources = [read_ckplus(root).sequences[0].source for root in (tmp_path, tmp_path / "a", tmp_path / "a/b")]
    assert sources == ["cohn-kanade-images/S005/001"] * 3


def test_archives_unpacked_each_in_its_own_folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("unpacked")
    for name, folder in (("extended-cohn-kanade-images", "cohn-kanade-images"), ("Emotion_labels", "Emotion")):
        (other / name).mkdir()
        (root / folder).rename(other / name / folder)
    (sequence,) = read_ckplus(other).sequences
    assert (sequence.clip_id, sequence.source) == ("S005_001", "cohn-kanade-images/S005/001")
    assert read_ckplus(other).skipped == ()


def test_a_set_further_down_is_not_looked_for(root: Path) -> None:
    add_frames(root / "backup", "S006", "001", [1])
    add_label(root / "backup", "S006", "001", 1, HAPPY)
    dataset = read_ckplus(root)
    assert [sequence.clip_id for sequence in dataset.sequences] == ["S005_001"]
    assert dataset.reasons(root) == {"backup": "a folder that is not part of the layout of CK+"}


def test_what_else_the_distribution_holds_is_listed(root: Path) -> None:
    (root / "Landmarks" / "S005").mkdir(parents=True)
    (root / "FACS").mkdir()
    (root / "ReadMe.txt").write_text("read me")
    assert read_ckplus(root).reasons(root) == {
        "FACS": "action units, which foldwise does not read",
        "Landmarks": "landmarks, which foldwise does not read",
        "ReadMe.txt": "a file that is not part of the layout of CK+",
    }


def test_folders_in_lower_case_are_the_same_subject(tmp_path: Path) -> None:
    folder = tmp_path / "cohn-kanade-images/s005/001"
    folder.mkdir(parents=True)
    (folder / "S005_001_00000001.png").write_bytes(b"png")
    add_label(tmp_path, "S005", "001", 1, HAPPY)
    (sequence,) = read_ckplus(tmp_path).sequences
    assert (sequence.clip_id, sequence.subject) == ("S005_001", "S005")
    add_frames(tmp_path, "S005", "001", [1])
    assert read_ckplus(tmp_path).reasons(tmp_path) == {
        "cohn-kanade-images/s005/001": "a second folder of S005_001"
    }


def test_two_images_of_one_number(root: Path) -> None:
    (root / "cohn-kanade-images/S005/001/S005_001_3.png").write_bytes(b"png")
    dataset = read_ckplus(root)
    assert len(dataset.sequences[0].frames) == 11
    assert dataset.reasons(root) == {
        "cohn-kanade-images/S005/001/S005_001_3.png": "has the same number as S005_001_00000003.png"
    }


def test_digits_of_other_scripts_are_no_numbers(root: Path) -> None:
    (root / "cohn-kanade-images/S005/001/S005_001_١٢.png").write_bytes(b"png")
    assert len(read_ckplus(root).sequences[0].frames) == 11


def test_labels_that_cannot_be_read_are_no_labels(tmp_path: Path) -> None:
    for number in ("001", "002"):
        add_frames(tmp_path, "S005", number, [1])
        add_label(tmp_path, "S005", number, 1, None)
    (tmp_path / "Emotion/S005/001/S005_001_00000001_emotion.txt").mkdir()
    (tmp_path / "Emotion/S005/002/S005_002_00000001_emotion.txt").symlink_to("nowhere")
    dataset = read_ckplus(tmp_path)
    assert dataset.sequences == ()
    assert set(dataset.reasons(tmp_path)) == {
        f"{tree}/S005/{number}" for tree in ("cohn-kanade-images", "Emotion") for number in ("001", "002")
    }


def test_names_that_are_not_utf8_are_listed_as_text(root: Path) -> None:
    odd = root / "cohn-kanade-images/S005/001" / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes(b"png")
    (reason,) = read_ckplus(root).reasons(root).items()
    assert reason == (
        "cohn-kanade-images/S005/001/caf\\xe9.png",
        "a file that is not part of the layout of CK+",
    )


def test_a_synthetic_set_is_not_held_against_the_genuine_one(root: Path) -> None:
    (root / "synthetic.json").write_text("{}")
    dataset = read_ckplus(root)
    assert (dataset.warnings, dataset.skipped) == ((), ())
