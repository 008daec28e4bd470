"""Your own videos: `subject/label/clip.mp4`, a folder of images instead of a video, or a list in a CSV file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from preprocessing.datasets.image_files import images_of_clip
from preprocessing.datasets.reader import WHOLE_VIDEO, Dataset, FrameSequence, Span, as_text
from preprocessing.datasets.reader_settings import yes_or_no
from preprocessing.datasets.tree import Tree, is_file, is_folder
from preprocessing.datasets.video_list import REQUIRED, NotAClip, Row, find_listed, read_video_list
from preprocessing.media_kind import MediaKind, media_kind
from services.errors import InvalidInput
from services.official_splits import Part, read_part

NAME = "video-folder"

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
"""Names of folders that hold parts of a split, not the clips of one person."""


def read_video_folder(root: Path, *, manifest: str = "", name: str = NAME, colour: str = "yes") -> Dataset:
    """Read the clips under `root` from its folders or a list; the classes are the labels in alphabetical order.

    Everything under `root` is part of a clip or listed in `skipped`, as is every row of the list that is no
    clip. Files are opened only to find out what they are; no frame is decoded.

    Args:
        root: the folder of the videos.
        manifest: a CSV file, relative to `root`, with the columns path (relative to `root`), subject, label and
            optionally start and end: frames counted from 0 or seconds like `2.5s`, both ends included. A list
            with its own split has the column fold, or split with train, validation and test; it may then lack
            subjects. Empty: the folders give subject and label.
        name: name of the folder of its caches.
        colour: `yes`, or `no` for gray clips.

    Raises:
        NotFound: `root` or `manifest` does not exist.
        InvalidInput: `root` is no folder, `manifest` cannot be read, lacks a column or has an unknown part of a
            split, or another setting has an invalid value.
        OSError: the disk failed.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"name is {name!r}; use lower case letters, digits and hyphens.", field="name")
    in_colour = yes_or_no("colour", colour)
    tree = Tree(root, layout="a folder of videos (subject/label/clip)")
    clips = _Clips(tree)
    if manifest:
        _read_list(clips, tree.root / Path(manifest).expanduser())
    else:
        _read_folders(clips)
    sequences = tuple(clips.by_id[clip_id] for clip_id in sorted(clips.by_id))
    clips.warnings += _similar_names({sequence.subject for sequence in sequences} - {""})
    return Dataset(
        name=name,
        classes=tuple(sorted({sequence.label for sequence in sequences})),
        sequences=sequences,
        skipped=tree.finish(_not_in_list if manifest else _not_in_folders),
        warnings=tuple(clips.warnings),
        colour=in_colour,
        settings={"manifest": as_text(manifest), "name": name, "colour": colour},
    )


class _Clips:
    """The clips found so far, by id."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.by_id: dict[str, FrameSequence] = {}
        self.warnings: list[str] = []

    def add(
        self,
        path: Path,
        *,
        subject: str,
        label: str,
        span: Span = WHOLE_VIDEO,
        ends: str = "",
        images: Sequence[Path] | None = None,
        fold: str = "",
        split: Part | Literal[""] = "",
    ) -> None:
        """Add the clip of a video, an image file or a folder of images.

        Args:
            path: the video, image file or folder.
            subject: the person; empty if the list gives no subjects.
            label: the class name.
            span: the part that belongs to the clip.
            ends: `span` as the list writes it.
            images: the images of the folder; None: all images in it.
            fold: name of its fold in the list's own split.
            split: its part of the list's own split.

        Raises:
            NotAClip: it is no clip, or a duplicate.
        """
        if not label:
            raise NotAClip("no label")
        source = as_text(path.relative_to(self.tree.root).as_posix())
        clip_id = f"{source}#{ends}" if ends else source
        if clip_id in self.by_id:
            raise NotAClip(f"a duplicate of the clip {clip_id}")
        frames: tuple[Path, ...] = ()
        if is_folder(path):
            frames = self._part_of(
                _images(self.tree, self.tree.files(path)) if images is None else images, span
            )
        else:
            _check_file(path)
            self.tree.use(path)
        self.by_id[clip_id] = FrameSequence(
            clip_id=clip_id,
            subject=subject,
            label=label,
            source=source,
            frames=frames,
            video=None if frames else path,
            span=WHOLE_VIDEO if frames else span,
            fold=fold,
            split=split,
        )

    def _part_of(self, images: Sequence[Path], span: Span) -> tuple[Path, ...]:
        if not images:
            raise NotAClip("no images in it")
        if span.seconds:
            raise NotAClip("start and end of a folder of images are frames, not seconds")
        last = len(images) - 1
        first, end = int(span.start or 0), last if span.end is None else int(span.end)
        if max(first, end) > last:
            raise NotAClip(f"it has no frame {max(first, end)}, only frames 0 to {last}")
        self.tree.use(*images)
        return tuple(images[first : end + 1])


def _check_file(path: Path) -> None:
    if is_file(path) and path.stat().st_size == 0:
        raise NotAClip("an empty file")
    if not is_file(path) or media_kind(path) is None:
        raise NotAClip("neither a video nor an image, nor a folder of images")


def _read_folders(clips: _Clips) -> None:
    tree = clips.tree
    for subject in tree.folders(tree.root):
        for label in tree.folders(subject):
            files = tree.files(label)
            own = [path for path in files if media_kind(path) in {MediaKind.VIDEO, MediaKind.PAGES}]
            # images directly in the label's folder are one clip
            images = _images(tree, [path for path in files if path not in own])
            for path in (*own, *tree.folders(label), *([label] if images else [])):
                try:
                    clips.add(
                        path,
                        subject=as_text(subject.name),
                        label=_label(label.name),
                        images=images if path == label else None,
                    )
                except NotAClip as error:
                    tree.skip(path, str(error))
    splits = {sequence.subject for sequence in clips.by_id.values() if sequence.subject.casefold() in _SPLITS}
    if splits:
        raise InvalidInput(
            f"root is {tree.root}, whose folder {sorted(splits)[0]!r} is named like a part of a split, but the "
            "folders in root must be people, because no person may be in training and test; write a list with "
            f"the columns {', '.join(REQUIRED)} and split, and give it by --set manifest=FILE.",
            field="root",
        )


def _read_list(clips: _Clips, manifest: Path) -> None:
    found = read_video_list(manifest)
    clips.tree.use(manifest)
    if found.unread_columns:
        named = ", ".join(as_text(name) or "(no name)" for name in found.unread_columns)
        clips.warnings.append(f"Columns of {as_text(manifest.name)} that were not read: {named}.")
    for row in found.rows:
        try:
            row.check(found.required)
            _add_row(clips, row)
        except NotAClip as error:
            clips.tree.skip(manifest, str(error), part=f"line {row.line}")


def _add_row(clips: _Clips, row: Row) -> None:
    path = find_listed(clips.tree.root, row.path)
    ends = f"{row.start}-{row.end}" if row.start or row.end else ""
    try:
        clips.add(
            path,
            subject=as_text(row.subject),
            label=_label(row.label),
            span=row.span(),
            ends=ends,
            fold=row.fold,
            split=read_part(row.split) or "",
        )
    except NotAClip as error:
        raise NotAClip(f"{as_text(row.path)}: {error}") from None


def _images(tree: Tree, files: Iterable[Path]) -> list[Path]:
    def skip_duplicate(path: Path, used: Path) -> None:
        tree.skip(path, f"named like {as_text(used.name)}: the same frame in another format")

    return images_of_clip(files, skip_duplicate)


def _similar_names(subjects: set[str]) -> Iterator[str]:
    by_folded: dict[str, list[str]] = {}
    for subject in sorted(subjects):
        by_folded.setdefault("".join(subject.casefold().split()), []).append(subject)
    for names in by_folded.values():
        if len(names) > 1:
            named = ", ".join(names)
            yield f"The subjects {named} count as different people; if they are one person, use one name."


def _label(text: str) -> str:
    return as_text(text).strip().lower()


def _not_in_folders(path: Path) -> str | None:
    if is_folder(path):
        return "a folder without videos or images in subject/label/clip"
    kind = media_kind(path) if is_file(path) else None
    if kind is not None:
        return f"{'an image' if kind is MediaKind.IMAGE else 'a video'} outside subject/label"
    return "neither a video nor an image"


def _not_in_list(_path: Path) -> str:
    return "not in the list"
