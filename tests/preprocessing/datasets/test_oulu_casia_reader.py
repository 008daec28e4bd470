"""The Oulu-CASIA reader, under every root name and with the traps that copies have."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.datasets.oulu_casia import CLASSES, FOLDER_OF_CLASS, read_oulu_casia
from services.errors import InvalidInput, NotFound


def add(
    root: Path, subject: str = "P001", emotion: str = "Anger", frames: range | list[int] = range(3)
) -> Path:
    folder = root / subject / emotion
    folder.mkdir(parents=True, exist_ok=True)
    for frame in frames:
        (folder / f"{frame:03d}.jpeg").write_bytes(b"jpeg")
    return folder


def test_reads_a_sequence(tmp_path: Path) -> None:
    folder = add(tmp_path / "OriginalImg/VL/Strong", "P012", "Happiness", range(21))
    dataset = read_oulu_casia(tmp_path)
    (sequence,) = dataset.sequences
    assert (sequence.clip_id, sequence.subject, sequence.label) == ("P012_happy", "P012", "happy")
    assert sequence.source == "VL/Strong/P012/Happiness"
    assert sequence.frames == tuple(folder / f"{number:03d}.jpeg" for number in range(21))
    assert dataset.classes == ("anger", "disgust", "fear", "happy", "sadness", "surprise")
    assert dataset.name == "oulu-casia"
    assert dataset.colour
    assert dataset.settings == {"modality": "VL", "lighting": "Strong"}
    assert dataset.skipped == ()


@pytest.mark.parametrize(
    ("place", "root"),
    [
        ("VL/Strong", ""),
        ("VL/Strong", "VL"),
        ("VL/Strong", "VL/Strong"),
        ("B_OriginalImg/VL/Strong", ""),
        ("B_OriginalImg/B_OriginalImg/OriginalImg/VL/Strong", ""),
        ("B_OriginalImg/B_OriginalImg/OriginalImg/VL/Strong", "B_OriginalImg/B_OriginalImg"),
        ("Oulu_CASIA_NIR_VIS/VL/Strong", ""),
        ("Oulu_CASIA_NIR_VIS/vl/STRONG", ""),
        ("a/b/c/d/e/f/VL/Strong", ""),
    ],
)
def test_found_by_its_end_under_any_root(tmp_path: Path, place: str, root: str) -> None:
    add(tmp_path / place)
    (sequence,) = read_oulu_casia(tmp_path / root).sequences
    assert sequence.clip_id == "P001_anger"
    assert sequence.source.casefold() == "vl/strong/p001/anger"


@pytest.mark.parametrize(("modality", "colour"), [("VL", True), ("NI", False)])
@pytest.mark.parametrize("lighting", ["Strong", "Weak", "Dark"])
def test_one_camera_and_light_is_read_and_the_others_are_listed(
    tmp_path: Path, modality: str, colour: bool, lighting: str
) -> None:
    for place in (f"{camera}/{light}" for camera in ("VL", "NI") for light in ("Strong", "Weak", "Dark")):
        add(tmp_path / "OriginalImg" / place)
    dataset = read_oulu_casia(tmp_path, modality=modality.lower(), lighting=lighting.lower())
    (sequence,) = dataset.sequences
    assert sequence.source == f"{modality}/{lighting}/P001/Anger"
    assert dataset.colour == colour
    assert set(dataset.reasons(tmp_path).values()) == {
        f"not asked for: modality is {modality} and lighting {lighting}"
    }
    assert len(dataset.skipped) == 3  # the other camera, two lights


def test_frames_are_ordered_by_number_and_gaps_are_told(tmp_path: Path) -> None:
    top = tmp_path / "VL/Strong"
    add(top, "P001", frames=[10, 9, 100])
    add(top, "P002", frames=[1, 2])
    add(top, "P003", frames=range(12))
    dataset = read_oulu_casia(tmp_path)
    assert [path.name for path in dataset.sequences[0].frames] == ["009.jpeg", "010.jpeg", "100.jpeg"]
    assert "In 2 sequences the frames are not numbered" in dataset.warnings[1]
    assert "P001_anger, P002_anger" in dataset.warnings[1]


def test_what_is_not_a_sequence_is_listed_with_a_reason(tmp_path: Path) -> None:
    top = tmp_path / "VL/Strong"
    folder = add(top)
    (folder / "000.jpg").write_bytes(b"jpg")
    (folder / "Thumbs.db").write_bytes(b"")
    (folder / "notes.txt").write_text("mine")
    (folder / "003.jpeg").mkdir()
    (folder / "004.jpeg").symlink_to("nowhere")
    add(top, "p001", "Anger")
    add(top, "P001", "Contempt")
    add(top, "P002", "Fear", [])
    (top / "P003").mkdir()
    (top / "Q1").mkdir()
    (tmp_path / "A_Videos").mkdir()
    dataset = read_oulu_casia(tmp_path)
    assert [sequence.clip_id for sequence in dataset.sequences] == ["P001_anger"]
    assert len(dataset.sequences[0].frames) == 3
    assert dataset.reasons(top) == {
        "P001/Anger/000.jpg": "has the same number as 000.jpeg",
        "P001/Anger/003.jpeg": "a folder that is not part of the layout of Oulu-CASIA",
        "P001/Anger/004.jpeg": "a link to nothing",
        "P001/Anger/Thumbs.db": "hidden, or left by an operating system",
        "P001/Anger/notes.txt": "a file that is not part of the layout of Oulu-CASIA",
        "P001/Contempt": "no emotion of the set",
        "P002/Fear": "no images named <number>.jpeg",
        "P003": "a subject without an emotion folder",
        "Q1": "a folder that is not part of the layout of Oulu-CASIA",
        "p001/Anger": "a second folder of P001_anger",
        "../../A_Videos": "a folder that is not part of the layout of Oulu-CASIA",
    }


def test_the_complete_set_is_read_without_a_warning(tmp_path: Path) -> None:
    for number in range(1, 81):
        for emotion in FOLDER_OF_CLASS.values():
            add(tmp_path / "OriginalImg/VL/Strong", f"P{number:03d}", emotion, [0])
    dataset = read_oulu_casia(tmp_path)
    assert len(dataset.sequences) == 480
    assert dataset.warnings == ()
    (tmp_path / "OriginalImg/VL/Strong/P007/Fear/000.jpeg").unlink()
    (warning,) = read_oulu_casia(tmp_path).warnings
    assert warning == (
        "This is not the complete Oulu-CASIA set: 479 sequences instead of 480, 79 fear instead of 80."
    )


def test_a_synthetic_set_is_not_held_against_the_genuine_one(tmp_path: Path) -> None:
    add(tmp_path / "OriginalImg/VL/Strong")
    (tmp_path / "synthetic.json").write_text("{}")
    dataset = read_oulu_casia(tmp_path)
    assert (dataset.warnings, dataset.skipped) == ((), ())


def test_the_folder_that_is_missing_is_named_with_those_there_are(tmp_path: Path) -> None:
    add(tmp_path / "NI/Strong")
    add(tmp_path / "VL/Weak")
    with pytest.raises(
        InvalidInput, match=r"no folder VL/Strong .* with subjects: NI/Strong, VL/Weak"
    ) as refused:
        read_oulu_casia(tmp_path)
    assert refused.value.field == "root"


def test_two_sets_are_refused(tmp_path: Path) -> None:
    add(tmp_path / "OriginalImg/VL/Strong")
    add(tmp_path / "PreProcessedImg/VL/Strong")
    with pytest.raises(InvalidInput, match=r"several folders .*OriginalImg.*PreProcessedImg.*; give one"):
        read_oulu_casia(tmp_path)
    assert len(read_oulu_casia(tmp_path / "OriginalImg").sequences) == 1


def test_a_copy_of_the_set_inside_a_subject_is_not_a_second_set(tmp_path: Path) -> None:
    add(tmp_path / "VL/Strong")
    add(tmp_path / "VL/Strong/P001/old/VL/Strong")
    dataset = read_oulu_casia(tmp_path)
    assert len(dataset.sequences) == 1
    assert list(dataset.reasons(tmp_path)) == ["VL/Strong/P001/old"]


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    add(tmp_path / "a/VL/Strong")
    (tmp_path / "a/again").symlink_to(tmp_path)
    assert len(read_oulu_casia(tmp_path).sequences) == 1


@pytest.mark.parametrize("setting", ["modality", "lighting"])
def test_unknown_settings(tmp_path: Path, setting: str) -> None:
    with pytest.raises(InvalidInput, match=f"{setting} is 'bright'; use one of: ") as refused:
        read_oulu_casia(tmp_path, **{setting: "bright"})
    assert refused.value.field == setting


def test_no_root(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        read_oulu_casia(tmp_path / "nowhere")
    assert set(FOLDER_OF_CLASS) == set(CLASSES)
