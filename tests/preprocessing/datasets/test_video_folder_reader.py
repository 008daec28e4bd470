"""The reader of one's own videos, by folders and by a list."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from preprocessing.datasets.reader import Dataset, FrameSequence, Span
from preprocessing.datasets.registry import read_dataset
from preprocessing.datasets.video_folder import read_video_folder
from services.errors import InvalidInput, NotFound


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"content")


def by_id(dataset: Dataset) -> dict[str, FrameSequence]:
    return {sequence.clip_id: sequence for sequence in dataset.sequences}


def listed(root: Path, text: str | bytes, **settings: str) -> Dataset:
    (root / "clips.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_video_folder(root, manifest="clips.csv", **settings)


def test_videos_and_folders_of_frames(tmp_path: Path) -> None:
    put(tmp_path, "anna/Happy/one.mp4", "anna/Happy/two.AVI", "anna/sad/a.mov", "bert/happy/b.mkv")
    put(tmp_path, "bert/sad/walk/f10.png", "bert/sad/walk/f9.png", "bert/sad/walk/f1.png")
    put(tmp_path, "carl/happy/1.jpg", "carl/happy/2.jpg")
    dataset = read_video_folder(tmp_path)
    assert (dataset.name, dataset.classes, dataset.colour) == ("video-folder", ("happy", "sad"), True)
    found = by_id(dataset)
    assert {name: (one.subject, one.label) for name, one in found.items()} == {
        "anna/Happy/one.mp4": ("anna", "happy"),
        "anna/Happy/two.AVI": ("anna", "happy"),
        "anna/sad/a.mov": ("anna", "sad"),
        "bert/happy/b.mkv": ("bert", "happy"),
        "bert/sad/walk": ("bert", "sad"),
        "carl/happy": ("carl", "happy"),
    }
    assert found["anna/sad/a.mov"].video == tmp_path / "anna/sad/a.mov"
    assert [path.name for path in found["bert/sad/walk"].frames] == ["f1.png", "f9.png", "f10.png"]
    assert found["bert/sad/walk"].video is None
    assert dataset.skipped == ()
    assert list(found) == sorted(found)


def test_what_is_no_clip_is_listed_with_a_reason(tmp_path: Path) -> None:
    put(tmp_path, "anna/happy/one.mp4", "anna/happy/notes.txt", "anna/happy/._one.mp4", "anna/loose.mp4")
    put(tmp_path, "top.mov", "anna/happy/deep/deeper/two.mp4", "readme.md", "anna/sad/thing.xyz")
    (tmp_path / "anna/happy/empty.mp4").write_bytes(b"")
    (tmp_path / "anna/happy/gone.mp4").symlink_to("nowhere")
    (tmp_path / "anna/happy/folder.mp4").mkdir()
    (tmp_path / "bert").mkdir()
    dataset = read_video_folder(tmp_path)
    assert list(by_id(dataset)) == ["anna/happy/one.mp4"]
    assert dataset.reasons(tmp_path) == {
        "anna/happy/._one.mp4": "hidden, or left by an operating system",
        "anna/happy/deep": "no images in it",
        "anna/happy/empty.mp4": "an empty file",
        "anna/happy/folder.mp4": "no images in it",
        "anna/happy/gone.mp4": "a link to nothing",
        "anna/happy/notes.txt": "neither a video nor an image",
        "anna/loose.mp4": "a video outside subject/label",
        "anna/sad": "a folder without videos or images in subject/label/clip",
        "bert": "a folder without videos or images in subject/label/clip",
        "readme.md": "neither a video nor an image",
        "top.mov": "a video outside subject/label",
    }


def test_names_are_text_whatever_bytes_they_are(tmp_path: Path) -> None:
    put(tmp_path, os.fsdecode(b"Ren\xe9e/happy/one.mp4"), "Zoe\u0308/happy/two\n.mp4")
    found = by_id(read_video_folder(tmp_path))
    assert set(found) == {"Ren\\xe9e/happy/one.mp4", "Zoë/happy/two\\n.mp4"}
    assert {one.subject for one in found.values()} == {"Ren\\xe9e", "Zoë"}


def test_two_spellings_of_one_name_are_one_clip(tmp_path: Path) -> None:
    put(tmp_path, "Zoe\u0308/happy/a.mp4", "Zo\u00eb/happy/a.mp4", "Zo\u00eb/happy/b.mp4")
    dataset = read_video_folder(tmp_path)
    assert set(by_id(dataset)) == {"Zoë/happy/a.mp4", "Zoë/happy/b.mp4"}
    assert [skip.reason for skip in dataset.skipped] == ["a duplicate of the clip Zoë/happy/a.mp4"]


def test_one_frame_in_two_formats_is_read_once(tmp_path: Path) -> None:
    put(tmp_path, "anna/happy/1.jpg", "anna/happy/1.png", "anna/happy/2.png")
    dataset = read_video_folder(tmp_path)
    assert [path.name for path in dataset.sequences[0].frames] == ["1.jpg", "2.png"]
    assert dataset.reasons(tmp_path) == {
        "anna/happy/1.png": "named like 1.jpg: the same frame in another format"
    }


def test_subjects_that_may_be_one_are_told(tmp_path: Path) -> None:
    put(tmp_path, "Anna B/happy/1.mp4", "anna b/happy/1.mp4", "bert/happy/1.mp4")
    assert read_video_folder(tmp_path).warnings == (
        "The subjects Anna B, anna b count as different people; if they are one person, use one name.",
    )


def test_a_list(tmp_path: Path) -> None:
    put(tmp_path, "films/long.mp4", *(f"stills/{number}.png" for number in range(1, 13)), "films/other.mp4")
    dataset = listed(
        tmp_path,
        "path,subject,label,start,end\n"
        "films/long.mp4,anna,Happy,0,24\n"
        "films/long.mp4,bert,sad,1.5s,3s\n"
        "films/long.mp4,carl,sad,40,\n"
        "stills,anna,happy,2,4\n",
    )
    assert {name: (one.subject, one.label, one.span) for name, one in by_id(dataset).items()} == {
        "films/long.mp4#0-24": ("anna", "happy", Span(start=0, end=24)),
        "films/long.mp4#1.5s-3s": ("bert", "sad", Span(start=1.5, end=3, seconds=True)),
        "films/long.mp4#40-": ("carl", "sad", Span(start=40)),
        "stills#2-4": ("anna", "happy", Span()),
    }
    assert [path.name for path in by_id(dataset)["stills#2-4"].frames] == ["3.png", "4.png", "5.png"]
    assert dataset.reasons(tmp_path) == {"films/other.mp4": "not in the list"}
    assert dataset.warnings == ()


def test_rows_that_are_no_clips_are_listed_with_their_lines(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "stills/1.png", "notes.txt")
    (tmp_path / "none").mkdir()
    outside = tmp_path.parent / "outside.mp4"
    dataset = listed(
        tmp_path,
        f"path,subject,label,start,end\na.mp4,anna,happy,,\n\na.mp4,bert,sad,,\n,anna,happy,,\na.mp4,,happy,,\n"
        f"a.mp4,anna,,,\ngone.mp4,anna,happy,,\n../x.mp4,anna,happy,,\n{outside},anna,happy,,\n"
        "a.mp4,anna,happy,5,2\na.mp4,anna,happy,one,2\na.mp4,anna,happy,1,2s\nstills,anna,happy,0,1\n"
        "stills,anna,happy,0s,1s\nnotes.txt,anna,happy,,\nnone,anna,happy,,\nshort\na\0b.mp4,anna,happy,,\n",
    )
    assert list(by_id(dataset)) == ["a.mp4"]
    reasons = {where.removeprefix("clips.csv "): why for where, why in dataset.reasons(tmp_path).items()}
    ends = "must both be frames counted from 0, or both seconds like 2.5s"
    assert reasons == {
        "line 4": "a.mp4: a duplicate of the clip a.mp4",
        "line 5": "no path",
        "line 6": "no subject",
        "line 7": "no label",
        "line 8": "gone.mp4 is not there",
        "line 9": "../x.mp4 is outside root",
        "line 10": f"{outside} is outside root",
        "line 11": "a.mp4: end 2 is before start 5",
        "line 12": f"a.mp4: start 'one' and end '2' {ends}",
        "line 13": f"a.mp4: start '1' and end '2s' {ends}",
        "line 14": "stills: it has no frame 1, only frames 0 to 0",
        "line 15": "stills: start and end of a folder of images are frames, not seconds",
        "line 16": "notes.txt: neither a video nor an image, nor a folder of images",
        "line 17": "none: no images in it",
        "line 18": "no subject",
        "line 19": "a\\x00b.mp4 is not there",
        "none": "not in the list",
        "notes.txt": "not in the list",
        "stills": "not in the list",
    }


def test_what_spreadsheets_write(tmp_path: Path) -> None:
    put(tmp_path, "a, b.mp4", os.fsdecode(b"\xe9.mp4"))
    dataset = listed(
        tmp_path,
        b'\xef\xbb\xbfPath; Subject ;Label;rater\r\n"a, b.mp4";anna;happy;x\r\n\xe9.mp4;bert;sad;y\r\n',
    )
    assert set(by_id(dataset)) == {"a, b.mp4", "\\xe9.mp4"}
    assert dataset.warnings == ("Columns of clips.csv that were not read: rater.",)


def test_absolute_paths_below_the_root(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    assert set(by_id(listed(tmp_path, f"path,subject,label\n{tmp_path}/a.mp4,anna,happy\n"))) == {"a.mp4"}


@pytest.mark.parametrize("text", ["", "a.mp4,anna,happy\n", "path,subject\n"])
def test_a_list_without_its_header(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"whose first line lacks .*label; name the columns") as refused:
        listed(tmp_path, text)
    assert refused.value.field == "manifest"


def test_a_list_that_is_not_there_or_no_list(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"clips\.csv, which does not exist"):
        read_video_folder(tmp_path, manifest="clips.csv")
    with pytest.raises(InvalidInput, match="cannot be read: Is a directory"):
        read_video_folder(tmp_path, manifest=".")
    with pytest.raises(InvalidInput, match="whose line 2 is no CSV"):
        listed(tmp_path, "path,subject,label\n" + "x" * 200_000 + ",a,b\n")


@pytest.mark.parametrize("split", ["train", "Val", "validation", "test"])
def test_folders_of_a_split_are_no_people(tmp_path: Path, split: str) -> None:
    put(tmp_path, f"{split}/happy/1.mp4", f"{split}/sad/2.mp4", "anna/happy/1.mp4")
    with pytest.raises(
        InvalidInput, match=f"whose folder '{split}' is named like a part of a split"
    ) as refused:
        read_video_folder(tmp_path)
    assert "write a list with the columns path, subject, label" in refused.value.message
    list_of_people = f"path,subject,label\n{split}/happy/1.mp4,anna,happy\n"
    assert set(by_id(listed(tmp_path, list_of_people))) == {f"{split}/happy/1.mp4"}


def test_a_folder_of_a_split_without_clips_is_only_listed(tmp_path: Path) -> None:
    put(tmp_path, "anna/happy/1.mp4", "test/notes/readme.txt")
    assert set(by_id(read_video_folder(tmp_path))) == {"anna/happy/1.mp4"}


def test_a_name_that_two_files_share_but_for_stored_accents_is_ambiguous(tmp_path: Path) -> None:
    composed, half, apart = "\u01d6.mp4", "\u00fc\u0304.mp4", "u\u0308\u0304.mp4"
    put(tmp_path, half, apart)
    dataset = listed(tmp_path, f"path,subject,label\n{composed},anna,happy\n{apart},bert,happy\n")
    assert [one.subject for one in dataset.sequences] == ["bert"]
    assert (
        "is ambiguous: several names differ only in how accents are stored"
        in dataset.reasons(tmp_path)["clips.csv line 2"]
    )


def test_name_and_colour_are_settings(tmp_path: Path) -> None:
    put(tmp_path, "anna/happy/one.mp4")
    dataset = read_video_folder(tmp_path, name="my-films", colour="no")
    assert (dataset.name, dataset.colour) == ("my-films", False)
    assert dataset.settings == {"manifest": "", "name": "my-films", "colour": "no"}
    with pytest.raises(InvalidInput, match=r"name is '\.\./x'"):
        read_video_folder(tmp_path, name="../x")
    with pytest.raises(InvalidInput, match="colour is 'maybe'; use yes or no"):
        read_video_folder(tmp_path, colour="maybe")


# --- official splits --------------------------------------------------------------------------------------


def test_folds_and_parts_of_a_split_are_read(tmp_path: Path) -> None:
    put(tmp_path, "1.mp4", "2.mp4", "3.mp4")
    dataset = listed(
        tmp_path,
        "path,subject,label,Fold,SPLIT\n1.mp4,anna,sad,1.0,Train\n2.mp4,bert,sad,02,val\n3.mp4,carl,sad,x,test\n",
    )
    assert [(one.fold, one.split) for one in dataset.sequences] == [
        ("1", "train"),
        ("2", "validation"),
        ("x", "test"),
    ]
    assert dataset.warnings == ()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("split", "tst", "line 3 has the split 'tst'; write train, validation or test"),
        ("split", "", "line 3 has the split ''; write train"),
        ("fold", "", "line 3 has the fold ''; write 1 to 100 characters"),
        ("fold", "x" * 101, "line 3 has the fold 'xxx"),
    ],
)
def test_a_row_without_its_part_is_refused_with_its_line(
    tmp_path: Path, column: str, value: str, message: str
) -> None:
    put(tmp_path, "1.mp4", "2.mp4")
    with pytest.raises(InvalidInput, match=message) as refused:
        listed(tmp_path, f"path,subject,label,{column}\n1.mp4,anna,sad,test\n2.mp4,bert,sad,{value}\n")
    assert refused.value.field == "manifest"


def test_a_list_with_its_own_split_may_lack_subjects(tmp_path: Path) -> None:
    put(tmp_path, "1.mp4", "2.mp4")
    dataset = listed(tmp_path, "path,label,fold\n1.mp4,sad,1\n2.mp4,happy,2\n")
    assert [(one.subject, one.fold) for one in dataset.sequences] == [("", "1"), ("", "2")]
    some = listed(tmp_path, "path,label,fold,subject\n1.mp4,sad,1,anna\n2.mp4,happy,2,\n")
    assert [one.subject for one in some.sequences] == ["anna"]
    assert some.reasons(tmp_path)["clips.csv line 3"] == "no subject"
    with pytest.raises(InvalidInput, match="lacks subject"):
        listed(tmp_path, "path,label\n1.mp4,sad\n")


def test_what_is_wrong_with_a_split_is_said_while_clips_are_made(tmp_path: Path) -> None:
    put(tmp_path, "1.mp4", "2.mp4")

    def warnings(text: str) -> tuple[str, ...]:
        (tmp_path / "clips.csv").write_text(text)
        return read_dataset("video-folder", tmp_path, {"manifest": "clips.csv"}).warnings

    assert warnings("path,subject,label,split\n1.mp4,anna,sad,train\n2.mp4,bert,sad,test\n") == ()
    (leak,) = warnings("path,subject,label,split\n1.mp4,anna,sad,train\n2.mp4,anna,sad,test\n")
    assert leak == (
        "The protocol holdout will be refused: subject anna is in train (clip 1.mp4) and in test (clip 2.mp4)."
    )
    (unknown,) = warnings("path,label,split\n1.mp4,sad,train\n2.mp4,sad,test\n")
    assert unknown.startswith("No subjects are given, so nobody can check whether the split trains and tests")
