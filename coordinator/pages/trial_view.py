"""Computes what a trial's page shows from its folds; reads no database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from coordinator.pages import charts
from coordinator.pages.formats import percent
from coordinator.store.trial_results import FoldOutcome
from services import scores

SHADES = 10
"""Highest shade of a cell of a confusion matrix."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a confusion matrix: its text, and its shade from 0 (light) to `SHADES` (dark)."""

    text: str
    shade: int


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A confusion matrix as counts or as percentages."""

    key: str
    title: str
    rows: tuple[tuple[Cell, ...], ...]
    """Row = true class, column = predicted class."""


@dataclass(frozen=True, kw_only=True)
class FoldLine:
    """A row of the table of folds."""

    outcome: FoldOutcome
    subjects: tuple[str, ...]
    """Subjects of the fold's test clips; empty without the clip cache."""

    accuracy: float | None
    bar: Markup
    curves: Markup | None


@dataclass(frozen=True, kw_only=True)
class HardClip:
    """A clip, and its prediction at the epoch at which its fold counts."""

    clip_id: str
    fold: str
    true: str
    predicted: str
    correct: bool
    probability_of_true: float
    probability_of_predicted: float


def matrices(counts: scores.Counts) -> tuple[Matrix, ...]:
    """A confusion matrix as counts, and in percent of the true and the predicted class (the paper's Fig. 5)."""
    by_true = _shares(counts, counts.sum(axis=1, keepdims=True))
    by_predicted = _shares(counts, counts.sum(axis=0, keepdims=True))
    as_percent = np.vectorize(lambda share: f"{100 * share:.0f}")
    return (
        _matrix("counts", "counts", by_true, counts.astype(str)),
        _matrix("true", "% of true class", by_true, as_percent(by_true)),
        _matrix("predicted", "% of predicted class", by_predicted, as_percent(by_predicted)),
    )


def fold_lines(outcomes: Sequence[FoldOutcome], subject_of: Mapping[str, str]) -> list[FoldLine]:
    """A row for each fold, with its accuracy and its curves.

    Args:
        outcomes: folds of the trial.
        subject_of: subject by clip id; clips without a known subject are missing.
    """
    return [
        FoldLine(
            outcome=outcome,
            subjects=tuple(sorted({subject_of[c] for c in outcome.clip_ids if c in subject_of})),
            accuracy=None if outcome.correct is None else outcome.correct / len(outcome.labels),
            bar=charts.bar(
                [((outcome.correct or 0) / len(outcome.labels), "share")],
                label="not done" if outcome.correct is None else percent(outcome.correct / len(outcome.labels)),
            ),
            curves=_curves(outcome),
        )
        for outcome in outcomes
    ]


def hardest_clips(classes: Sequence[str], outcomes: Sequence[FoldOutcome], most: int) -> list[HardClip]:
    """The clips whose true class got the lowest probability, lowest first, of folds that learnt something."""
    clips = []
    for outcome in outcomes:
        if outcome.result is None or outcome.best_epoch is None or outcome.beyond_verdict:
            continue
        if outcome.result["epochs"][0]["loss"] is None:
            continue
        epoch = outcome.result["epochs"][outcome.best_epoch]
        for clip_id, label, predicted, probabilities in zip(
            outcome.clip_ids, outcome.labels, epoch["predicted"], epoch["probabilities"], strict=True
        ):
            clips.append(
                HardClip(
                    clip_id=clip_id,
                    fold=outcome.name,
                    true=classes[label],
                    predicted=classes[predicted],
                    correct=label == predicted,
                    probability_of_true=probabilities[label],
                    probability_of_predicted=probabilities[predicted],
                )
            )
    return sorted(clips, key=lambda clip: (clip.probability_of_true, clip.clip_id))[:most]


def _curves(outcome: FoldOutcome) -> Markup | None:
    """A chart of the accuracy on the fold's test clips and of the training loss, by epoch."""
    if outcome.result is None or outcome.best_epoch is None:
        return None
    epochs = outcome.result["epochs"]
    labels = np.asarray(outcome.labels)
    accuracy = [float((labels == np.asarray(epoch["predicted"])).mean()) for epoch in epochs]
    losses = [(number, epoch["loss"]) for number, epoch in enumerate(epochs) if epoch["loss"] is not None]
    x = charts.Axis(low=0, high=max(1, len(epochs) - 1), ticks=())
    share = charts.Axis(low=0, high=1, ticks=())
    best = outcome.best_epoch
    parts = [charts.line(list(enumerate(accuracy)), x, share, kind="accuracy")]
    at = f"at the epoch that counts, {best + 1} of {len(epochs)}"
    counted = (outcome.correct or 0) / len(labels)
    label = f"{outcome.name}: accuracy {percent(counted)} {at}"
    if losses:
        highest = max(loss for _, loss in losses) or 1.0
        parts.insert(0, charts.line([(n, loss / highest) for n, loss in losses], x, share, kind="loss"))
        label += f"; loss {losses[0][1]:.3g} in the first epoch, {losses[-1][1]:.3g} in the last"
    parts.append(charts.marks([(best, best, counted)], x, share, kind="best-epoch", symbol="ring"))
    return charts.plot(*parts, label=label, size="spark")


def _shares(counts: scores.Counts, totals: scores.Counts) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)


def _matrix(
    key: str, title: str, shares: np.ndarray[tuple[int, ...], np.dtype[np.float64]], texts: np.ndarray
) -> Matrix:
    return Matrix(
        key=key,
        title=title,
        rows=tuple(
            tuple(
                Cell(text=str(text), shade=round(SHADES * float(share)))
                for share, text in zip(row_shares, row_texts, strict=True)
            )
            for row_shares, row_texts in zip(shares, texts, strict=True)
        ),
    )
