"""Reads the list of a folder of videos: a CSV file as people and spreadsheets write it."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preprocessing.datasets.reader import Span, as_text
from preprocessing.datasets.text_files import decode_text
from services.errors import InvalidInput, NotFound
from services.official_splits import MAX_FOLD_NAME_CHARACTERS, read_fold_name, read_part

COLUMNS = ("path", "subject", "label", "start", "end", "fold", "split")
REQUIRED = COLUMNS[:3]

OFFICIAL = COLUMNS[5:]
"""Columns of a dataset's own split. A list with one of them needs no subjects."""

_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
"""First line in which a spreadsheet names its separator."""

_SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""How files of spreadsheet programs begin."""

_SECONDS = re.compile(r"[0-9]{1,9}(?:[.,][0-9]{1,9})? ?s")
_FRAME = re.compile(r"[0-9]{1,9}(?:[.,]0{1,9})?")
_OTHER_COMPUTER = re.compile(r"[A-Za-z]:|\\\\")
"""How a path with a drive or a server of Windows begins."""


class NotAClip(Exception):
    """The reason why something is no clip."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the list, as text."""

    line: int
    """The line that it ends on, from 1."""

    path: str
    subject: str
    label: str
    start: str
    end: str
    fold: str
    split: str

    def check(self, required: Sequence[str]) -> None:
        """Raise `NotAClip` if a required value is missing, or cannot be text."""
        for column in required:
            if not getattr(self, column):
                raise NotAClip(f"no {column}")
        for column in ("subject", "label"):
            value = getattr(self, column)
            if not _is_text(value):
                raise NotAClip(f"its {column} {as_text(value)} is not UTF-8; save the list as UTF-8")

    def span(self) -> Span:
        """The part of the video from start to end.

        Raises:
            NotAClip: as `parse_span`.
        """
        return parse_span(self.start, self.end)


@dataclass(frozen=True, kw_only=True)
class VideoList:
    """The content of a list."""

    rows: tuple[Row, ...]
    required: tuple[str, ...]
    """Columns that have a value in every row of a clip."""

    unread_columns: tuple[str, ...]
    """Names of other columns; one without a name is empty."""


def read_video_list(manifest: Path) -> VideoList:
    """Read a list with commas, semicolons, tabs or bars between columns, in UTF-8 or UTF-16.

    Folds and parts of a split have their stored names in the rows.

    Raises:
        NotFound: the file does not exist.
        InvalidInput: the file cannot be read, is no CSV, lacks a column, or has a row without its fold or its
            part of the split.
    """
    lines = _read_text(manifest).splitlines(keepends=True)
    above = next((index for index, line in enumerate(lines) if line.strip()), 0)
    match = _SEPARATOR_LINE.fullmatch(lines[above].strip()) if lines else None
    above += 1 if match else 0
    delimiters = (match[1],) if match else _DELIMITERS
    # The delimiter is the one that separates the names of the columns.
    lacking = {delimiter: _lacking(lines[above : above + 1], delimiter) for delimiter in delimiters}
    delimiter = min(delimiters, key=lambda each: len(lacking[each]))
    if lacking[delimiter]:
        first = as_text(lines[above].strip()) if len(lines) > above else ""
        raise InvalidInput(
            f"manifest is {manifest}, whose first line lacks {', '.join(lacking[delimiter])}; name the columns "
            f"{', '.join(COLUMNS[:5])} there. The line is: {first[:80] or '(empty)'}",
            field="manifest",
        )
    return _parse(manifest, lines[above:], delimiter, above)


def parse_span(start: str, end: str) -> Span:
    """The part of a video from `start` to `end`: frames counted from 0, or seconds like `2.5s`; empty: all.

    Raises:
        NotAClip: they are neither both frames nor both seconds, or `end` is before `start`.
    """
    ends = [text for text in (start, end) if text]
    seconds = [text for text in ends if _SECONDS.fullmatch(text)]
    frames = [text for text in ends if _FRAME.fullmatch(text)]
    if ends not in (seconds, frames):
        raise NotAClip(
            f"start {as_text(start)!r} and end {as_text(end)!r} must both be frames counted from 0, or both "
            "seconds like 2.5s"
        )
    first, last = (_number(text) if text else None for text in (start, end))
    if first is not None and last is not None and last < first:
        raise NotAClip(f"end {end} is before start {start}")
    return Span(start=first, end=last, seconds=bool(seconds))


def find_listed(root: Path, text: str) -> Path:
    """The file or folder under `root` that a row names, as written or as the same path on another system.

    Backslashes count as slashes, and letters with accents match composed or in two parts if one path does.

    Raises:
        NotAClip: there is no such path, several, or one outside `root`.
    """
    for spelling in dict.fromkeys((text, text.replace("\\", "/"))):
        path = Path(os.path.abspath(root / spelling))
        if not path.is_relative_to(root):
            raise NotAClip(f"{as_text(text)} is outside root")
        if "\0" in spelling:
            continue
        if os.path.lexists(path):
            return path
        found = _same_in_unicode(root, path.relative_to(root).parts)
        if len(found) > 1:
            raise NotAClip(f"{as_text(text)} is ambiguous: several names differ only in how accents are stored")
        if found:
            return found[0]
    advice = ""
    if _OTHER_COMPUTER.match(text):
        advice = "; give it relative to root"
    elif not _is_text(text):
        advice = "; if the name has accents, save the list as UTF-8"
    raise NotAClip(f"{as_text(text)} is not there{advice}")


def _read_text(manifest: Path) -> str:
    try:
        content = manifest.read_bytes()
        if content.startswith(_SPREADSHEETS):
            raise InvalidInput(
                f"manifest is {manifest}, a file of a spreadsheet program; save it as CSV.", field="manifest"
            )
        return decode_text(content)
    except FileNotFoundError:
        raise NotFound(
            f"manifest is {manifest}, which does not exist; give it relative to root.", field="manifest"
        ) from None
    except OSError as error:
        raise InvalidInput(
            f"manifest is {manifest}, which cannot be read: {error.strerror}.", field="manifest"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"manifest is {manifest}, which begins like {error.encoding}, but is not; save it as UTF-8.",
            field="manifest",
        ) from error


def _lacking(first_line: list[str], delimiter: str) -> list[str]:
    try:
        header = _names(next(csv.reader(first_line, delimiter=delimiter), []))
    except csv.Error:
        header = []
    return [name for name in _required(header) if name not in header]


def _required(header: Sequence[str]) -> tuple[str, ...]:
    has_subjects = "subject" in header or not any(name in header for name in OFFICIAL)
    return REQUIRED if has_subjects else tuple(name for name in REQUIRED if name != "subject")


def _parse(manifest: Path, lines: list[str], delimiter: str, above: int) -> VideoList:
    reader = csv.reader(io.StringIO("".join(lines), newline=""), delimiter=delimiter)
    try:
        header = _names(next(reader))
        index_of = {name: header.index(name) for name in COLUMNS if name in header}
        rows = [
            Row(
                line=reader.line_num + above,
                **{
                    name: line[index_of[name]].strip() if index_of.get(name, len(line)) < len(line) else ""
                    for name in COLUMNS
                },
            )
            for line in reader
            if any(value.strip() for value in line)
        ]
    except csv.Error as error:
        raise InvalidInput(
            f"manifest is {manifest}, whose line {reader.line_num + above} is no CSV: {error}.",
            field="manifest",
        ) from error
    return VideoList(
        rows=tuple(_with_official_split(manifest, row, index_of) for row in rows),
        required=_required(header),
        unread_columns=tuple(name for name in header if name not in COLUMNS),
    )


def _with_official_split(manifest: Path, row: Row, columns: Container[str]) -> Row:
    """The row with the stored names of its fold and its part, where the list has these columns."""
    fold, part = read_fold_name(row.fold), read_part(row.split)
    if "split" in columns and part is None:
        raise InvalidInput(
            f"manifest is {manifest}, whose line {row.line} has the split {as_text(row.split)!r}; write train, "
            "validation or test, or rename the column if it is no split.",
            field="manifest",
        )
    if "fold" in columns and not (0 < len(fold) <= MAX_FOLD_NAME_CHARACTERS and _is_text(fold)):
        raise InvalidInput(
            f"manifest is {manifest}, whose line {row.line} has the fold {as_text(row.fold)!r}; write 1 to "
            f"{MAX_FOLD_NAME_CHARACTERS} characters in UTF-8, or rename the column if it is no fold.",
            field="manifest",
        )
    return replace(row, fold=as_text(fold), split=part or "")


def _names(header: list[str]) -> list[str]:
    return [name.strip().casefold() for name in header]


def _number(text: str) -> float:
    return float(text.rstrip(" s").replace(",", "."))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8
        return False
    return True


def _same_in_unicode(root: Path, parts: tuple[str, ...]) -> list[Path]:
    """Paths under `root` whose names are equal to `parts` once accents are composed."""
    found = [root]
    for part in parts:
        wanted = unicodedata.normalize("NFC", part)
        found = [path for folder in found for path in _entries(folder) if _composed(path.name) == wanted]
    return found


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError:
        return


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
