"""Summarizes a clip cache and checks its consistency, for people, before they train on it for days."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from preprocessing.near_copies import find_near_copies
from services.clip_cache import CacheRecord, ClipCache, subjects_of
from services.errors import InvalidInput
from services.folds import MIN_CLASSES, GivenFolds, Holdout, KFold, LeaveOneSubjectOut, make_folds


class Confidence(BaseModel):
    """The detector's confidence in the faces it found (0 to 1); null if it found none."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    least: float | None
    median: float | None
    frames_with_face: float
    """Share of the frames with a face (0 to 1), without repeated frames."""


class ClassSummary(BaseModel):
    """The clips of one class."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: str
    clips: int
    subjects: int
    flagged: int
    confidence: Confidence


class FoldSummary(BaseModel):
    """Number of test clips in the folds of a protocol."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    protocol: str
    folds: int
    least_clips: int
    median_clips: float
    most_clips: int


class Check(BaseModel):
    """One check and the problems it found."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    problems: tuple[str, ...]
    """In words; empty if there are none."""
    broken: bool = False
    """Whether a problem means that the cache is damaged; if not, a person must judge it."""

    def lines(self) -> Iterator[str]:
        """For people: one line if there is no problem, otherwise one for each."""
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
    """Clips that repeat their last frame because their sequence is too short."""
    flagged: dict[str, tuple[str, ...]]
    dropped: dict[str, str]
    skipped: int
    warnings: tuple[str, ...]
    checks: tuple[Check, ...]


def inspect_cache(cache: ClipCache) -> Inspection:
    """Summarize an open cache and run all checks but those of the hashes, which `open_cache` makes."""
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
    """Check that index, manifest and arrays agree, and that the clips are fit for a study."""
    return (
        Check(name="index and manifest agree", problems=tuple(_index_problems(cache)), broken=True),
        Check(name="clips and index agree", problems=tuple(_repeat_problems(cache)), broken=True),
        Check(name="every class has clips of several subjects", problems=tuple(_class_problems(cache))),
        Check(name="every clip shows something", problems=tuple(_flat_clips(cache))),
        Check(
            name="no clip appears under two subjects",
            problems=tuple(str(pair) for pair in find_near_copies(cache)),
        ),
    )


def _class_summary(label: str, records: Sequence[CacheRecord]) -> ClassSummary:
    return ClassSummary(
        label=label,
        clips=len(records),
        subjects=len(subjects_of(records)),
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
    # Folds do not depend on labels.
    clips = [record.as_clip(0) for record in records]
    for protocol in (LeaveOneSubjectOut(), KFold(k=10), GivenFolds(), Holdout()):
        try:
            folds = make_folds(clips, protocol)
        except InvalidInput:  # fewer subjects than folds, or no such split
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
    if (subjects := len(subjects_of(records))) != manifest.subjects:
        yield f"the index has {subjects} subjects, the manifest says {manifest.subjects}"
    if unknown := sorted({record.label for record in records} - set(manifest.classes)):
        yield f"the label {unknown[0]!r} is not among the classes"
    for label in manifest.classes:
        count = sum(record.label == label for record in records)
        if count != manifest.class_counts.get(label):
            yield f"the index has {count} clips of {label}, the manifest {manifest.class_counts.get(label)}"
    for record in records:
        lengths = {len(record.frames), len(record.boxes), len(record.confidences)}
        if lengths != {manifest.frames}:
            yield f"{record.clip_id} lists {sorted(lengths)} frames, boxes and confidences"
        elif [box is None for box in record.boxes] != [value is None for value in record.confidences]:
            yield f"{record.clip_id} has a box without a confidence, or a confidence without a box"
        if not 0 <= record.repeated < manifest.frames:
            yield f"{record.clip_id} repeats {record.repeated} of {manifest.frames} frames"
    if both := sorted(manifest.dropped.keys() & {record.clip_id for record in records}):
        yield f"{both[0]} is listed as dropped, but is in the index"


def _repeat_problems(cache: ClipCache) -> Iterator[str]:
    for record, clip in zip(cache.records, cache.frames(clahe=False), strict=True):
        last = len(record.frames) - record.repeated - 1
        if record.repeated and not (clip[last:] == clip[last]).all():
            yield f"{record.clip_id} should repeat frame {last + 1} to its end"


def _class_problems(cache: ClipCache) -> Iterator[str]:
    for label, count in cache.manifest.class_counts.items():
        if count == 0:
            yield f"{label} has no clip"
        elif len(subjects_of(record for record in cache.records if record.label == label)) == 1:
            yield (
                f"{label} has clips of one subject only: it is never trained in the fold that tests it, so "
                "they all count as wrong"
            )
    if sum(count > 0 for count in cache.manifest.class_counts.values()) < MIN_CLASSES:
        yield f"the clips have fewer than {MIN_CLASSES} classes; no study can run on them"


def _flat_clips(cache: ClipCache) -> Iterator[str]:
    for record, clip in zip(cache.records, cache.frames(clahe=False), strict=True):
        if clip.std() < 1.0:
            yield f"{record.clip_id} is one flat surface"
