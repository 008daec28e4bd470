"""What is in a clip cache, and whether it agrees with itself: for people, before they train on it for days."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from preprocessing.near_copies import find_near_copies
from services.clip_cache import CacheRecord, ClipCache
from services.errors import InvalidInput
from services.folds import Clip, KFold, LeaveOneSubjectOut, make_folds


class Confidence(BaseModel):
    """How sure the detector was of the faces it found; null where it found none."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    least: float | None
    median: float | None
    frames_with_face: float
    """Share of the frames, repeated ones not counted."""


class ClassSummary(BaseModel):
    """The clips of one class."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: str
    clips: int
    subjects: int
    flagged: int
    confidence: Confidence


class FoldSummary(BaseModel):
    """How many clips the folds of a protocol test."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    protocol: str
    folds: int
    least_clips: int
    median_clips: float
    most_clips: int


class Check(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    problems: tuple[str, ...]
    """In words; empty where all is well."""
    broken: bool = False
    """Whether a problem here means that the cache is not as it was made; others are for people to judge."""

    def lines(self) -> Iterator[str]:
        """For people: what is well in one line, or a line for each problem."""
        if not self.problems:
            yield f"ok: {self.name}"
        for problem in self.problems:
            yield f"{'broken' if self.broken else 'look'}: {problem}"


class Inspection(BaseModel):
    """What `foldwise inspect --json` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    dataset: str
    fingerprint: str
    folder: str
    clips: int
    subjects: int
    frames: int
    frame_size: int
    channels: int
    detector: str
    classes: tuple[ClassSummary, ...]
    folds: tuple[FoldSummary, ...]
    confidence: Confidence
    repeated: int
    """Clips that repeat their last frame, for want of frames."""
    flagged: dict[str, tuple[str, ...]]
    dropped: dict[str, str]
    skipped: int
    warnings: tuple[str, ...]
    checks: tuple[Check, ...]


def inspect_cache(cache: ClipCache) -> Inspection:
    """Summarize an open cache and run all checks; the hashes are `open_cache`'s to check."""
    manifest, records = cache.manifest, cache.records
    return Inspection(
        dataset=manifest.dataset,
        fingerprint=manifest.fingerprint,
        folder=str(cache.folder),
        clips=manifest.clips,
        subjects=manifest.subjects,
        frames=manifest.frames,
        frame_size=manifest.frame_size,
        channels=manifest.channels,
        detector=", ".join(sorted({record.detector for record in records})),
        classes=tuple(
            _class_summary(label, [record for record in records if record.label == label])
            for label in manifest.classes
        ),
        folds=tuple(_fold_summaries(records)),
        confidence=_confidence(records),
        repeated=sum(record.repeated > 0 for record in records),
        flagged={record.clip_id: record.flags for record in records if record.flags},
        dropped=manifest.dropped,
        skipped=len(manifest.skipped),
        warnings=manifest.warnings,
        checks=check_cache(cache),
    )


def check_cache(cache: ClipCache) -> tuple[Check, ...]:
    """Whether index, manifest and arrays agree, and whether the clips are what a study needs."""
    return (
        Check(name="index and manifest agree", problems=tuple(_index_problems(cache)), broken=True),
        Check(name="clips and index agree", problems=tuple(_repeat_problems(cache)), broken=True),
        Check(name="every class has clips", problems=tuple(_class_problems(cache))),
        Check(name="every clip shows something", problems=tuple(_flat_clips(cache))),
        Check(
            name="no clip stands under two subjects",
            problems=tuple(str(pair) for pair in find_near_copies(cache)),
        ),
    )


def _class_summary(label: str, records: Sequence[CacheRecord]) -> ClassSummary:
    return ClassSummary(
        label=label,
        clips=len(records),
        subjects=len({record.subject for record in records}),
        flagged=sum(bool(record.flags) for record in records),
        confidence=_confidence(records),
    )


def _confidence(records: Iterable[CacheRecord]) -> Confidence:
    values = [
        value for record in records for value in record.confidences[: len(record.frames) - record.repeated]
    ]
    found = [value for value in values if value is not None]
    return Confidence(
        least=min(found, default=None),
        median=round(float(np.median(found)), 4) if found else None,
        frames_with_face=round(len(found) / len(values), 4) if values else 0.0,
    )


def _fold_summaries(records: Sequence[CacheRecord]) -> Iterator[FoldSummary]:
    # Folds do not look at labels.
    clips = [Clip(clip_id=record.clip_id, subject=record.subject, label=0) for record in records]
    for protocol in (LeaveOneSubjectOut(), KFold(k=10)):
        try:
            folds = make_folds(clips, protocol)
        except InvalidInput:  # fewer subjects than folds
            continue
        sizes = [len(fold.test_clips) for fold in folds]
        yield FoldSummary(
            protocol=protocol.kind,
            folds=len(folds),
            least_clips=min(sizes),
            median_clips=float(np.median(sizes)),
            most_clips=max(sizes),
        )


def _index_problems(cache: ClipCache) -> Iterator[str]:
    manifest, records = cache.manifest, cache.records
    if len({record.clip_id for record in records}) != len(records):
        yield "two clips have the same id"
    if (subjects := len({record.subject for record in records})) != manifest.subjects:
        yield f"the index has {subjects} subjects, the manifest says {manifest.subjects}"
    if strange := sorted({record.label for record in records} - set(manifest.classes)):
        yield f"the label {strange[0]!r} is none of the classes"
    for label in manifest.classes:
        count = sum(record.label == label for record in records)
        if count != manifest.class_counts.get(label):
            yield f"the index has {count} clips of {label}, the manifest {manifest.class_counts.get(label)}"
    for record in records:
        lengths = {len(record.frames), len(record.boxes), len(record.confidences)}
        if lengths != {manifest.frames}:
            yield f"{record.clip_id} lists {sorted(lengths)} frames, boxes and confidences"
        elif [box is None for box in record.boxes] != [value is None for value in record.confidences]:
            yield f"{record.clip_id} has a box without a confidence, or the other way round"
        if not 0 <= record.repeated < manifest.frames:
            yield f"{record.clip_id} repeats {record.repeated} of {manifest.frames} frames"
    if both := sorted(manifest.dropped.keys() & {record.clip_id for record in records}):
        yield f"{both[0]} is listed as dropped and is there"


def _repeat_problems(cache: ClipCache) -> Iterator[str]:
    for record, clip in zip(cache.records, cache.frames(clahe=False), strict=True):
        last = len(record.frames) - record.repeated - 1
        if record.repeated and not (clip[last:] == clip[last]).all():
            yield f"{record.clip_id} should repeat frame {last + 1} to its end"


def _class_problems(cache: ClipCache) -> Iterator[str]:
    for label, count in cache.manifest.class_counts.items():
        if count == 0:
            yield f"{label} has no clip"


def _flat_clips(cache: ClipCache) -> Iterator[str]:
    for record, clip in zip(cache.records, cache.frames(clahe=False), strict=True):
        if clip.std() < 1.0:
            yield f"{record.clip_id} is one flat surface"
