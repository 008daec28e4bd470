"""What `foldwise preprocess` and `foldwise inspect` print about a clip cache, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cli.terminal.tables import skipped_lines
from services.clip_cache import subjects_words

if TYPE_CHECKING:
    # OpenCV takes a while to load.
    from preprocessing.inspection import Confidence, Inspection
    from preprocessing.job import Outcome

MAX_LINES = 10
"""Maximum number of near-identical clips to print, one pair a line: a face on every clip makes thousands."""


def print_outcome(outcome: Outcome, output: Console) -> None:
    """Print what `foldwise preprocess` did: what is flagged, dropped, leaked or not read, and the counts."""

    def say(text: str) -> None:
        output.print(text, highlight=False, soft_wrap=True)

    manifest = outcome.manifest
    for warning in manifest.warnings:
        say(f"warning: {warning}")
    for clip_id, flags in outcome.flagged.items():
        say(f"flagged: {clip_id}: {'; '.join(flags)}")
    for clip_id, reason in manifest.dropped.items():
        say(f"dropped: {clip_id}: {reason}")
    pairs = outcome.near_copies
    for pair in pairs[:MAX_LINES]:
        say(f"leak: {pair}")
    if len(pairs) > MAX_LINES:
        say(f"leak: {len(pairs) - MAX_LINES} more pairs; `foldwise inspect {outcome.folder} --json` lists all")
    for line in skipped_lines(manifest.skipped):
        say(line)
    counts = ", ".join(f"{name} {count}" for name, count in manifest.class_counts.items())
    say(f"{manifest.clips} clips of {subjects_words(manifest.subjects)} ({counts})")
    say(
        f"{outcome.made} made now, {len(outcome.flagged)} flagged, {len(manifest.dropped)} dropped; "
        f"leaks between subjects: {len(outcome.near_copies)}"
    )
    say(f"{outcome.folder}")


def print_inspection(found: Inspection, skipped: Mapping[str, str], output: Console) -> None:
    """Print an inspection of a cache, with the reason for each path that its reader skipped."""

    def say(text: str) -> None:
        output.print(text, highlight=False, soft_wrap=True)

    say(f"{found.dataset}/{found.fingerprint[:12]}  {found.folder}")
    kind = "gray" if found.channels == 1 else "colour"
    windows = "" if found.windows == 1 else f"{found.windows} windows of "
    sampling = "" if found.frame_sampling == "last" else f" ({found.frame_sampling})"
    say(
        f"  {found.clips} clips of {subjects_words(found.subjects)}, {windows}{found.frames} frames{sampling} "
        f"of {found.frame_size} x {found.frame_size}, {kind}, faces by {found.detector}"
    )
    table = Table(
        "class", "clips", "subjects", "flagged", "frames with face", "confidence", box=None, pad_edge=False
    )
    for one in found.classes:
        table.add_row(
            one.label,
            str(one.clips),
            str(one.subjects),
            str(one.flagged),
            f"{one.confidence.frames_with_face:.1%}",
            _confidence(one.confidence),
        )
    table.add_row(
        "all",
        str(found.clips),
        str(found.subjects),
        str(len(found.flagged)),
        f"{found.confidence.frames_with_face:.1%}",
        _confidence(found.confidence),
    )
    output.print(table)
    for folds in found.folds:
        say(
            f"  {folds.protocol}: {folds.folds} folds of {folds.least_clips} to {folds.most_clips} test "
            f"clips (median {folds.median_clips:g})"
        )
    if not found.folds:
        say("  too few subjects for a cross-validation")
    if found.repeated:
        say(f"  {found.repeated} clips are too short and repeat their last frame")
    for warning in found.warnings:
        say(f"  warning: {warning}")
    for clip_id, flags in found.flagged.items():
        say(f"  flagged: {clip_id}: {'; '.join(flags)}")
    for clip_id, reason in found.dropped.items():
        say(f"  dropped: {clip_id}: {reason}")
    for line in skipped_lines(skipped):
        say(f"  {line}")
    for check in found.checks:
        for line in check.lines():
            say(f"  {line}")


def _confidence(confidence: Confidence) -> str:
    if confidence.median is None:
        return "-"
    return f"{confidence.median:.2f} (least {confidence.least:.2f})"
