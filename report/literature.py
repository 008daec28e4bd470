"""Published accuracies on the paper's two datasets: its Tables 6, 7 and 8, in percent as printed there."""

from __future__ import annotations

from dataclasses import dataclass

from services.contracts import StudyView
from services.folds import KFold, LeaveOneSubjectOut, Protocol

PAPER = "3D-CNN, searched (Haddad et al., 2020)"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One table of the paper, and the studies that it can be compared with."""

    title: str
    dataset: str
    protocol: Protocol
    clips: int
    classes: int
    approaches: tuple[tuple[str, float], ...]
    """Names and accuracies in percent."""


CKPLUS_CLIPS = 327
OULU_CLIPS = 480

CLIPS_TOLERANCE = 0.022
"""Share of the clips (0 to 1) that a study may have more or fewer: 7 of CK+, 10 of Oulu-CASIA. Copies of a set
differ, and clips without a face are dropped."""

COMPARISONS = (
    Comparison(
        title="LOSO results for CK+ (the paper's Table 6)",
        dataset="ckplus",
        protocol=LeaveOneSubjectOut(),
        clips=CKPLUS_CLIPS,
        classes=7,
        approaches=(
            ("CNN, AlexNet (Ouellet, 2014)", 94.4),
            ("DAE, DSAE (Zeng et al., 2018)", 95.79),
            (PAPER, 97.56),
        ),
    ),
    Comparison(
        title="10-fold results for CK+ (the paper's Table 7)",
        dataset="ckplus",
        protocol=KFold(k=10),
        clips=CKPLUS_CLIPS,
        classes=7,
        approaches=(
            ("LBP/Gabor + SRC (Zhang et al., 2012)", 98.09),
            ("DBN + MLP (Zhao et al., 2015)", 98.57),
            ("CNN (Breuer and Kimmel, 2017)", 98.62),
            ("FAN (Meng et al., 2019)", 99.69),
            (PAPER, 100.0),
        ),
    ),
    Comparison(
        title="10-fold results for Oulu-CASIA (the paper's Table 8)",
        dataset="oulu-casia",
        protocol=KFold(k=10),
        clips=OULU_CLIPS,
        classes=6,
        approaches=(
            ("FLT (Jung et al., 2015)", 74.17),
            ("C3D (Jung et al., 2015)", 74.38),
            ("FLT + C3D (Jung et al., 2015)", 81.49),
            (PAPER, 84.17),
            ("STC (Yu et al., 2018)", 84.72),
            ("LSTM, STC-NLSTM (Yu et al., 2018)", 93.45),
        ),
    ),
)


def comparison_for(study: StudyView) -> Comparison | None:
    """The paper's table for the study's protocol if the study uses nearly all its clips; otherwise None."""
    for comparison in COMPARISONS:
        if (
            study.dataset == comparison.dataset
            and study.spec.protocol == comparison.protocol
            and abs(study.clips - comparison.clips) <= CLIPS_TOLERANCE * comparison.clips
            and len(study.classes) == comparison.classes
        ):
            return comparison
    return None


def clips_note(study: StudyView, comparison: Comparison) -> str | None:
    """A clause about a study that has more or fewer clips than the paper; None if it has as many."""
    if study.clips == comparison.clips:
        return None
    return f"study {study.name} has {study.clips} clips, the paper {comparison.clips}"
