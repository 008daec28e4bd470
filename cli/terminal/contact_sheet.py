"""A contact sheet of a clip cache: for each class all frames of some clips, and of the flagged clips."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.clip_cache import CacheRecord, ClipCache, Frames, subjects_words
from services.errors import InvalidInput

_CELL, _GAP, _LABEL_WIDTH, _MIN_WIDTH, _HEADER, _TITLE = 72, 4, 300, 760, 30, 58
_RED = (204, 0, 0)
_MAX_FLAGGED = 20
"""Maximum number of flagged clips to draw per class; the class's header counts all of them."""
_MAX_ROWS = 600
"""Maximum number of rows; many programs cannot open a taller picture."""


@dataclass(frozen=True)
class _Text:
    x: int
    y: int
    """Middle of the first line, in pixels from the top."""
    text: str
    size: float
    colour: str = "black"
    bold: bool = False


def save_contact_sheet(cache: ClipCache, path: Path, *, clips_per_class: int = 4) -> None:
    """Draw a contact sheet as PNG.

    The flags of a clip are written in red; a frame without its own face has a red border.

    Args:
        cache: the clip cache.
        path: file to write.
        clips_per_class: number of clips without a flag to draw per class, besides the flagged ones.

    Raises:
        InvalidInput: the sheet would have too many rows.
    """
    chosen = {label: _choose(cache.records, label, clips_per_class) for label in cache.manifest.classes}
    rows = sum(len(indices) for indices in chosen.values())
    if rows > _MAX_ROWS:
        raise InvalidInput(
            f"the sheet would have {rows} rows; use a smaller --clips-per-class", field="clips_per_class"
        )
    pitch = _CELL + _GAP
    dropped = list(_dropped_lines(cache))
    height = _TITLE + len(chosen) * _HEADER + rows * pitch + len(dropped) * 18 + 12
    width = max(_MIN_WIDTH, _LABEL_WIDTH + cache.manifest.frames * pitch + _GAP)
    canvas = np.full((height, width, 3), 255, np.uint8)
    texts = [*_title(cache)]
    top = _TITLE
    frames = cache.frames(clahe=False)
    for label, indices in chosen.items():
        flagged = sum(bool(r.flags) for r in cache.records if r.label == label)
        count = cache.manifest.class_counts.get(label, 0)
        header = f"{label}: {count} clips" + (f", {flagged} flagged" if flagged else "")
        texts.append(_Text(8, top + _HEADER // 2, header, 11, bold=True))
        top += _HEADER
        for index in indices:
            _draw_row(canvas[top : top + _CELL], cache.records[index], frames[index])
            texts += _row_texts(cache.records[index], top)
            top += pitch
    for line in dropped:
        texts.append(_Text(8, top + 12, line, 8, colour="#cc0000"))
        top += 18
    _save(canvas, texts, path)


def _choose(records: Sequence[CacheRecord], label: str, count: int) -> list[int]:
    """Indices of the flagged clips of a class, and of `count` others spread over the class."""
    of_class = [index for index, record in enumerate(records) if record.label == label]
    flagged = [index for index in of_class if records[index].flags][:_MAX_FLAGGED]
    plain = [index for index in of_class if not records[index].flags]
    if len(plain) > count:
        plain = [plain[int(step)] for step in np.linspace(0, len(plain) - 1, count)] if count else []
    return sorted({*flagged, *plain})


def _title(cache: ClipCache) -> Iterator[_Text]:
    manifest = cache.manifest
    flagged = sum(bool(record.flags) for record in cache.records)
    yield _Text(8, 18, f"{manifest.dataset}/{manifest.fingerprint[:12]}", 13, bold=True)
    detector = ", ".join(sorted({record.detector for record in cache.records}))
    yield _Text(
        8,
        42,
        f"{manifest.clips} clips of {subjects_words(manifest.subjects)}, detector {detector}, "
        f"{flagged} flagged, {len(manifest.dropped)} dropped. Red border: no face found, box of another frame.",
        8.5,
    )


def _draw_row(row: NDArray[np.uint8], record: CacheRecord, clip: Frames) -> None:
    for number, frame in enumerate(clip):
        left = _LABEL_WIDTH + number * (_CELL + _GAP)
        cell = row[:, left : left + _CELL]
        picture = _resized(frame)
        cell[:] = picture if picture.ndim == 3 else picture[..., None]
        repeated = number >= len(clip) - record.repeated
        if record.boxes[number] is None:
            for edge in (cell[:3], cell[-3:], cell[:, :3], cell[:, -3:]):
                edge[:] = _RED
        if repeated:
            # Brighten a repetition of the last frame.
            cell[:] = cell // 2 + 127


def _resized(frame: Frames) -> Frames:
    # Nearest neighbour shows the cache's values unchanged.
    index = np.arange(_CELL) * frame.shape[0] // _CELL
    picture: Frames = frame[index][:, index]
    return picture


def _row_texts(record: CacheRecord, top: int) -> Iterator[_Text]:
    yield _Text(8, top + 10, _cut(record.clip_id, 42), 8.5, bold=bool(record.flags))
    confident = [value for value in record.confidences if value is not None]
    confidence = f"{np.median(confident):.2f}" if confident else "none"
    subject = record.subject or "unknown"
    yield _Text(8, top + 25, _cut(f"subject {subject}, confidence {confidence}", 50), 7.5, colour="#555555")
    flags = [*record.flags[:2], *([f"and {len(record.flags) - 2} more"] if len(record.flags) > 2 else [])]
    for number, flag in enumerate(flags):
        yield _Text(8, top + 40 + 13 * number, _cut(flag, 52), 7.5, colour="#cc0000")


def _dropped_lines(cache: ClipCache) -> Iterator[str]:
    dropped = list(cache.manifest.dropped.items())
    for clip_id, reason in dropped[:_MAX_FLAGGED]:
        yield _cut(f"dropped: {clip_id}: {reason}", 170)
    if len(dropped) > _MAX_FLAGGED:
        yield f"and {len(dropped) - _MAX_FLAGGED} more dropped clips"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _save(canvas: NDArray[np.uint8], texts: Sequence[_Text], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    FigureCanvasAgg(figure)
    figure.figimage(canvas, origin="upper")
    for text in texts:
        figure.text(
            text.x / width,
            1 - text.y / height,
            text.text,
            fontsize=text.size,
            color=text.colour,
            fontweight="bold" if text.bold else "normal",
            va="center",
            parse_math=False,
        )
    with warnings.catch_warnings():
        # The font draws unknown scripts as boxes; do not warn for each of them.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(path, format="png", dpi=100)
