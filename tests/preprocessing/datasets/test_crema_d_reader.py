"""The CREMA-D reader: the repository of its authors, with and without its large files, and conversions."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.datasets.crema_d import CLASSES, COMPLETE_COUNTS, read_crema_d
from services.errors import InvalidInput

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 414429\n"


def add(root: Path, *names: str, folder: str = "VideoFlash", content: bytes = b"video") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / folder / name).write_bytes(content)


def test_reads_a_take(tmp_path: Path) -> None:
    add(tmp_path, "1001_IEO_SAD_MD.flv")
    dataset = read_crema_d(tmp_path)
    (sequence,) = dataset.sequences
    assert (sequence.clip_id, sequence.subject, sequence.label) == ("1001_IEO_SAD_MD", "1001", "sadness")
    assert sequence.source == "VideoFlash/1001_IEO_SAD_MD.flv"
    assert sequence.video == tmp_path / sequence.source
    assert dataset.name == "crema-d"
    assert dataset.classes == CLASSES == ("anger", "disgust", "fear", "happy", "sadness", "neutral")
    assert dataset.colour
    assert dataset.skipped == ()
    assert dataset.settings == {
        "level": "LO,MD,HI,XX",
        "classes": "anger,disgust,fear,happy,sadness,neutral",
        "end": "",
        "colour": "yes",
    }


def test_every_emotion_has_its_label(tmp_path: Path) -> None:
    add(tmp_path, *(f"1001_DFA_{code}_XX.flv" for code in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")))
    labels = [sequence.label for sequence in read_crema_d(tmp_path).sequences]
    assert labels == ["anger", "disgust", "fear", "happy", "neutral", "sadness"]


def test_a_conversion_is_read_if_it_is_the_only_file(tmp_path: Path) -> None:
    add(tmp_path, "1001_DFA_ANG_XX.flv", "1002_DFA_ANG_XX.flv")
    add(tmp_path, "1003_DFA_ANG_XX.flv", content=POINTER)
    add(
        tmp_path,
        *("1001_DFA_ANG_XX.mp4", "1003_DFA_ANG_XX.mp4", "1004_DFA_ANG_XX.avi"),
        folder="Converted",
    )
    dataset = read_crema_d(tmp_path)
    assert [sequence.source for sequence in dataset.sequences] == [
        "VideoFlash/1001_DFA_ANG_XX.flv",
        "VideoFlash/1002_DFA_ANG_XX.flv",
        "Converted/1003_DFA_ANG_XX.mp4",
        "Converted/1004_DFA_ANG_XX.avi",
    ]
    assert dataset.reasons(tmp_path) == {
        "Converted/1001_DFA_ANG_XX.mp4": "another file of a take that is read once",
        "VideoFlash/1003_DFA_ANG_XX.flv": "it is a pointer of Git LFS; run `git lfs pull`",
    }


def test_the_name_with_one_x_of_older_copies_is_the_same_take(tmp_path: Path) -> None:
    add(tmp_path, "1040_ITH_SAD_X.flv")
    (sequence,) = read_crema_d(tmp_path).sequences
    assert sequence.clip_id == "1040_ITH_SAD_XX"
    add(tmp_path, "1040_ITH_SAD_XX.flv")
    assert len(read_crema_d(tmp_path).sequences) == 1


def test_only_what_is_asked_for_is_read_and_the_rest_is_listed(tmp_path: Path) -> None:
    add(tmp_path, "1001_IEO_ANG_LO.flv", "1001_IEO_ANG_HI.flv", "1001_DFA_ANG_XX.flv", "1001_IEO_FEA_HI.flv")
    add(tmp_path, "1001_IEO_NEU_XX.flv")
    dataset = read_crema_d(tmp_path, level="hi,lo", classes="neutral,anger")
    assert [sequence.clip_id for sequence in dataset.sequences] == [
        "1001_IEO_ANG_HI",
        "1001_IEO_ANG_LO",
        "1001_IEO_NEU_XX",
    ]
    assert dataset.classes == ("anger", "neutral")
    assert dataset.settings["level"] == "LO,HI"
    assert dataset.warnings == ()
    assert dataset.reasons(tmp_path / "VideoFlash") == {
        "1001_DFA_ANG_XX.flv": "not asked for: level is LO,HI",
        "1001_IEO_FEA_HI.flv": "not asked for: classes is anger,neutral",
    }


def test_what_is_not_a_take_is_listed_with_a_reason(tmp_path: Path) -> None:
    add(tmp_path, "1001_DFA_ANG_XX.flv", "1001_DFA_JOY_XX.flv", "1001_DFA_ANG.flv", "1001_DFA_FEA_XX.wav")
    add(tmp_path, "1001_DFA_FEA_XX.flv", content=b"")
    add(tmp_path, "1001_DFA_ANG_XX.wav", folder="AudioWAV")
    add(tmp_path, "1001_DFA_ANG_XX.mp3", folder="AudioMP3")
    (tmp_path / "VideoDemographics.csv").write_text("ActorID,Age")
    dataset = read_crema_d(tmp_path)
    assert [sequence.clip_id for sequence in dataset.sequences] == ["1001_DFA_ANG_XX"]
    assert dataset.reasons(tmp_path) == {
        "AudioMP3": "sound without pictures",
        "AudioWAV": "sound without pictures",
        "VideoDemographics.csv": "a file that is not part of the layout of CREMA-D",
        "VideoFlash/1001_DFA_ANG.flv": "a video whose name is not actor_sentence_emotion_level",
        "VideoFlash/1001_DFA_FEA_XX.flv": "it is empty",
        "VideoFlash/1001_DFA_FEA_XX.wav": "sound without pictures",
        "VideoFlash/1001_DFA_JOY_XX.flv": "its emotion is none of ANG, DIS, FEA, HAP, NEU, SAD",
    }


def test_the_counts_of_the_complete_set_are_those_of_its_authors() -> None:
    assert sum(COMPLETE_COUNTS.values()) == 7442


def test_an_incomplete_set_is_told(tmp_path: Path) -> None:
    add(tmp_path, "1001_DFA_ANG_XX.flv")
    (warning,) = read_crema_d(tmp_path, classes="anger,neutral").warnings
    assert warning == (
        "This is not the complete CREMA-D set: 1 sequences instead of 2358, 1 subjects instead of 91, "
        "1 anger instead of 1271, 0 neutral instead of 1087."
    )


def test_a_folder_without_videos_of_the_set_is_told_what_it_should_hold(tmp_path: Path) -> None:
    add(tmp_path, "1001_DFA_ANG_XX.wav", folder="AudioWAV")
    with pytest.raises(
        InvalidInput,
        match=r"holds no video of CREMA-D.*; unpack the set there, so that it holds "
        r"VideoFlash/1001_DFA_ANG_XX\.flv \(the name is actor_sentence_emotion_level\)",
    ) as refused:
        read_crema_d(tmp_path)
    assert refused.value.field == "root"


@pytest.mark.parametrize(("setting", "value"), [("level", "loud"), ("classes", "calm"), ("end", "1-2")])
def test_unknown_settings(tmp_path: Path, setting: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=f"{setting} is '{value}'") as refused:
        read_crema_d(tmp_path, **{setting: value})
    assert refused.value.field == setting
