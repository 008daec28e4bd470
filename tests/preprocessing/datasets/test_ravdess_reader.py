"""The RAVDESS reader, with the folders and files that people have after unpacking the archives."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.datasets.ravdess import CLASSES, read_ravdess
from services.errors import InvalidInput, NotFound


def add(root: Path, *names: str, content: bytes = b"video") -> None:
    """Files of these names in the folder of the actor that each name ends with."""
    for name in names:
        path = root / f"Actor_{Path(name).stem[-2:]}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def complete_set(root: Path) -> None:
    for channel, emotions, actors in (
        ("01", range(1, 9), range(1, 25)),
        ("02", range(1, 7), [n for n in range(1, 25) if n != 18]),
    ):
        for actor in actors:
            takes = [
                f"{channel}-{emotion:02d}-{intensity:02d}-{statement:02d}-{repetition:02d}-{actor:02d}.mp4"
                for emotion in emotions
                for intensity in ((1, 2) if emotion > 1 else (1,))
                for statement in (1, 2)
                for repetition in (1, 2)
            ]
            add(root, *(f"01-{take}" for take in takes))


def test_reads_a_take(tmp_path: Path) -> None:
    add(tmp_path, "01-01-06-02-02-01-12.mp4")
    dataset = read_ravdess(tmp_path)
    (sequence,) = dataset.sequences
    assert (sequence.clip_id, sequence.subject, sequence.label) == ("01-06-02-02-01-12", "Actor_12", "fear")
    assert sequence.source == "Actor_12/01-01-06-02-02-01-12.mp4"
    assert sequence.video == tmp_path / sequence.source
    assert dataset.name == "ravdess"
    assert dataset.classes == CLASSES
    assert dataset.colour
    assert dataset.skipped == ()
    assert dataset.settings == {
        "channel": "speech",
        "intensity": "normal,strong",
        "classes": "anger,disgust,fear,happy,sadness,surprise,neutral,calm",
        "end": "",
        "colour": "yes",
    }


def test_every_emotion_has_its_label(tmp_path: Path) -> None:
    add(tmp_path, *(f"01-01-{code:02d}-01-01-01-01.mp4" for code in range(1, 9)))
    labels = [sequence.label for sequence in read_ravdess(tmp_path).sequences]
    assert labels == ["neutral", "calm", "happy", "sadness", "anger", "fear", "disgust", "surprise"]


@pytest.mark.parametrize(
    "place",
    [
        "",
        "RAVDESS/Actor_03",
        "Video_Speech_Actor_03/Actor_03",
        "Video_Speech_Actor_03/Video_Speech_Actor_03/Actor_03",
        "ravdess/ACTOR03",
        "all of them",
    ],
)
def test_found_by_its_name_in_any_folder(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "02-01-05-01-01-01-03.MP4").write_bytes(b"video")
    (sequence,) = read_ravdess(tmp_path).sequences
    assert (sequence.subject, sequence.label) == ("Actor_03", "anger")


def test_a_take_with_several_files_is_one_clip_read_with_sound_if_it_can_be(tmp_path: Path) -> None:
    add(tmp_path, "02-01-03-01-01-01-01.mp4", "01-01-03-01-01-01-01.mp4", "02-01-04-01-01-01-01.mp4")
    add(tmp_path / "backup", "01-01-03-01-01-01-01.mp4")
    add(tmp_path, "01-01-04-01-01-01-01.mp4", content=b"")
    dataset = read_ravdess(tmp_path)
    assert [sequence.source for sequence in dataset.sequences] == [
        "Actor_01/01-01-03-01-01-01-01.mp4",
        "Actor_01/02-01-04-01-01-01-01.mp4",
    ]
    assert dataset.reasons(tmp_path) == {
        "Actor_01/01-01-04-01-01-01-01.mp4": "it is empty",
        "Actor_01/02-01-03-01-01-01-01.mp4": "another file of a take that is read once",
        "backup/Actor_01/01-01-03-01-01-01-01.mp4": "another file of a take that is read once",
    }


def test_only_what_is_asked_for_is_read_and_the_rest_is_listed(tmp_path: Path) -> None:
    add(
        tmp_path,
        *("01-01-01-01-01-01-01.mp4", "01-01-02-01-01-01-01.mp4", "01-01-05-01-01-01-01.mp4"),
        *("01-01-05-02-01-01-01.mp4", "01-02-05-02-01-01-01.mp4"),
    )
    dataset = read_ravdess(tmp_path, intensity="Strong", classes="neutral, anger", colour="no")
    assert [sequence.clip_id for sequence in dataset.sequences] == ["01-01-01-01-01-01", "01-05-02-01-01-01"]
    assert dataset.classes == ("anger", "neutral")
    assert not dataset.colour
    assert dataset.settings["intensity"] == "strong"
    assert dataset.reasons(tmp_path / "Actor_01") == {
        "01-01-02-01-01-01-01.mp4": "not asked for: classes is anger,neutral",
        "01-01-05-01-01-01-01.mp4": "not asked for: intensity is strong",
        "01-02-05-02-01-01-01.mp4": "not asked for: channel is speech",
    }


def test_song_has_the_classes_that_were_sung(tmp_path: Path) -> None:
    add(tmp_path, "01-01-05-01-01-01-01.mp4", "01-02-05-01-01-01-01.mp4")
    sung = read_ravdess(tmp_path, channel="song")
    assert sung.classes == ("anger", "fear", "happy", "sadness", "neutral", "calm")
    assert [sequence.clip_id for sequence in sung.sequences] == ["02-05-01-01-01-01"]
    assert len(read_ravdess(tmp_path, channel="song,speech").sequences) == 2
    with pytest.raises(InvalidInput, match=r"classes is 'disgust', but 'disgust' is not known"):
        read_ravdess(tmp_path, channel="song", classes="disgust")


def test_a_clip_can_end_before_its_video(tmp_path: Path) -> None:
    add(tmp_path, "01-01-05-01-01-01-01.mp4")
    assert read_ravdess(tmp_path).sequences[0].span.end is None
    (sequence,) = read_ravdess(tmp_path, end="2.5s").sequences
    assert (sequence.span.start, sequence.span.end, sequence.span.seconds) == (None, 2.5, True)
    with pytest.raises(InvalidInput, match=r"end is 'soon'; give seconds like 2\.5s") as refused:
        read_ravdess(tmp_path, end="soon")
    assert refused.value.field == "end"


def test_what_is_not_a_take_is_listed_with_a_reason(tmp_path: Path) -> None:
    add(tmp_path, "01-01-05-01-01-01-01.mp4", "03-01-05-01-01-01-01.wav", "03-01-05-01-01-02-01.mp4")
    add(tmp_path, "01-01-09-01-01-01-01.mp4", "01-01-05-01-01-01-25.mp4", "01-01-05-01-01-01-01 copy-01.mp4")
    add(tmp_path, "01-01-05-02-01-01-01.mp4", content=b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "Audio_Speech_Actors_01-24/Actor_01").mkdir(parents=True)
    (tmp_path / "Audio_Speech_Actors_01-24/Actor_01/03-01-05-01-01-01-01.wav").write_bytes(b"sound")
    (tmp_path / "Video_Speech_Actor_02.zip").write_bytes(b"PK")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".DS_Store").write_bytes(b"")
    dataset = read_ravdess(tmp_path)
    assert [sequence.clip_id for sequence in dataset.sequences] == ["01-05-01-01-01-01"]
    form = "modality-channel-emotion-intensity-statement-repetition-actor"
    assert dataset.reasons(tmp_path) == {
        ".DS_Store": "hidden, or left by an operating system",
        "Actor_01/01-01-05-02-01-01-01.mp4": "it is a pointer of Git LFS; run `git lfs pull`",
        "Actor_01/01-01-09-01-01-01-01.mp4": "its name has a number that RAVDESS does not use",
        "Actor_01/03-01-05-01-01-01-01.wav": "sound without pictures",
        "Actor_01/03-01-05-01-01-02-01.mp4": "sound without pictures (modality 03)",
        "Actor_01/01-01-05-01-01-01-01 copy-01.mp4": f"a video whose name is not {form}",
        "Actor_25/01-01-05-01-01-01-25.mp4": "RAVDESS has no actor 25",
        "Audio_Speech_Actors_01-24": "sound without pictures",
        "Video_Speech_Actor_02.zip": "an archive; unpack it",
        "notes.txt": "a file that is not part of the layout of RAVDESS",
    }


def test_the_complete_set_is_read_without_a_warning(tmp_path: Path) -> None:
    complete_set(tmp_path)
    both = "normal,strong"
    for channel, intensity, takes in (
        ("speech", both, 1440),
        ("song", both, 1012),
        ("speech,song", "strong", 1320),
    ):
        dataset = read_ravdess(tmp_path, channel=channel, intensity=intensity)
        assert (len(dataset.sequences), dataset.warnings) == (takes, ())
    (tmp_path / "Actor_07/01-01-05-01-01-01-07.mp4").unlink()
    (warning,) = read_ravdess(tmp_path).warnings
    assert warning == (
        "This is not the complete RAVDESS set: 1439 sequences instead of 1440, 191 anger instead of 192."
    )


def test_a_folder_without_videos_of_the_set_is_told_what_it_should_hold(tmp_path: Path) -> None:
    (tmp_path / "Actor_01").mkdir()
    (tmp_path / "Actor_01/holiday.mp4").write_bytes(b"video")
    with pytest.raises(
        InvalidInput,
        match=r"holds no video of RAVDESS.*; unpack the set there, so that it holds "
        r"Actor_01/01-01-01-01-01-01-01\.mp4 \(the name is modality-channel-",
    ) as refused:
        read_ravdess(tmp_path)
    assert refused.value.field == "root"
    (tmp_path / "Video_Speech_Actor_01.zip").write_bytes(b"PK")
    with pytest.raises(InvalidInput, match=r"unpack Video_Speech_Actor_01\.zip and the like there"):
        read_ravdess(tmp_path)


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    add(tmp_path / "set", "01-01-05-01-01-01-01.mp4")
    (tmp_path / "set/again").symlink_to(tmp_path)
    assert len(read_ravdess(tmp_path).sequences) == 1


@pytest.mark.parametrize("setting", ["channel", "intensity", "classes", "colour"])
def test_unknown_settings(tmp_path: Path, setting: str) -> None:
    with pytest.raises(InvalidInput, match=f"{setting} is 'loud'") as refused:
        read_ravdess(tmp_path, **{setting: "loud"})
    assert refused.value.field == setting


def test_no_root(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        read_ravdess(tmp_path / "nowhere")
