"""Parts of a report: intervals, tables as files, the network as it is drawn, the literature beside it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from report.architecture import trial_layers
from report.literature import PAPER, clips_note, comparison_for
from report.table import Hours, Percent, Table, write_csv, write_latex
from services.contracts import StudyState, StudyView, TrialState
from services.folds import KFold, LeaveOneSubjectOut
from services.intervals import bootstrap, wilson
from services.network_layers import Convolution, Dense, Pool
from services.presets import get_preset
from services.scores import accuracy, best_common_epoch, unweighted_f1


@given(st.integers(1, 400).flatmap(lambda clips: st.tuples(st.integers(0, clips), st.just(clips))))
@settings(max_examples=50, deadline=None)
def test_wilsons_interval_is_that_of_scipy(counts: tuple[int, int]) -> None:
    known = binomtest(*counts).proportion_ci(method="wilson")
    assert wilson(*counts) == pytest.approx((known.low, known.high), abs=1e-9)


def test_the_bootstrap_keeps_the_clips_of_a_subject_together() -> None:
    # Twenty subjects, all right or all wrong: as good as twenty clips, however many clips each has.
    right, wrong = np.diag([3, 3]), np.asarray([[0, 3], [3, 0]])
    low, high = bootstrap([right] * 16 + [wrong] * 4, accuracy)
    # So many of twenty draws are right, each four times in five, in the middle 95 % of cases.
    assert [low, high] == pytest.approx([binom.ppf(q, 20, 0.8) / 20 for q in (0.025, 0.975)])
    assert high - low > 1.5 * np.subtract(*wilson(96, 120)[::-1]), "clips taken as independent promise too much"
    assert bootstrap([right] * 16 + [wrong] * 4, accuracy) == (low, high), "the same again"
    assert bootstrap([right] * 3, unweighted_f1) == (1.0, 1.0)
    with pytest.raises(ValueError, match="at least 2 units, got 1"):
        bootstrap([right], accuracy)


def test_the_best_common_epoch_is_the_earliest_with_the_most_right() -> None:
    assert best_common_epoch([[1, 3, 3], [2, 2, 2]]) == (1, 5)
    assert best_common_epoch([[0], [0]]) == (0, 0)
    with pytest.raises(ValueError, match="inhomogeneous"):
        best_common_epoch([[1, 2], [1]])
    with pytest.raises(ValueError, match="no epoch"):
        best_common_epoch([])


def test_a_table_is_written_in_full_for_programs_and_escaped_for_latex(tmp_path: Path) -> None:
    table = Table(
        name="t",
        caption="50 % of a_b & c",
        columns=("What", "Share", "Time", "On"),
        rows=[("x_1 {y}", Percent(1 / 3), Hours(5400), True), ("z", Percent(None), Hours(30), False)],
        marked=0,
    )
    write_csv(table, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file))[1:] == [
            ["x_1 {y}", str(1 / 3), "5400", "true"],
            ["z", "", "30", "false"],
        ]
    write_latex(table, tmp_path / "t.tex")
    text = (tmp_path / "t.tex").read_text()
    assert r"\caption{50 \% of a\_b \& c}" in text
    assert r"\textbf{x\_1 \{y\}} & \textbf{33.33 \%} & \textbf{1.50 h} & \textbf{true} \\" in text
    assert r"\begin{tabular}{lrrl}" in text


def test_the_network_is_drawn_with_the_papers_filters_and_shapes() -> None:
    spec = get_preset("ckplus-loso")
    layers = trial_layers({"temporal_size": 5}, spec, 7)
    convolutions = [layer for layer in layers if isinstance(layer, Convolution)]
    assert [layer.units for layer in convolutions] == [64, 128, 256, 256, 512, 512, 512, 512]
    assert {layer.kernel for layer in convolutions} == {(5, 3, 3)}
    pools = [layer for layer in layers if isinstance(layer, Pool)]
    assert [pool.kernel for pool in pools] == [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]
    assert pools[-1].shape == (1, 4, 4)
    assert [layer.units for layer in layers if isinstance(layer, Dense)] == [4096, 4096, 7]
    doubled = trial_layers({"second_conv_layer": True}, spec, 7)
    optional = [layer for layer in doubled if isinstance(layer, Convolution) and layer.optional]
    assert [layer.units for layer in optional] == [64, 128]


@pytest.mark.parametrize(
    ("preset", "protocol", "clips", "classes", "ours"),
    [
        ("ckplus-loso", LeaveOneSubjectOut(), 327, 7, 97.56),
        ("ckplus-10fold", KFold(k=10), 327, 7, 100.0),
        ("oulu-10fold", KFold(k=10), 480, 6, 84.17),
        ("ckplus-10fold", KFold(k=5), 327, 7, None),
        ("ckplus-loso", LeaveOneSubjectOut(), 70, 7, None),
        # Copies of a set differ in some clips, and clips without a face are dropped.
        ("ckplus-loso", LeaveOneSubjectOut(), 320, 7, 97.56),
        ("ckplus-best", LeaveOneSubjectOut(), 334, 7, 97.56),
        ("ckplus-loso", LeaveOneSubjectOut(), 319, 7, None),
        ("ckplus-loso", LeaveOneSubjectOut(), 335, 7, None),
        ("oulu-10fold", KFold(k=10), 470, 6, 84.17),
        ("oulu-10fold", KFold(k=10), 469, 6, None),
    ],
)
def test_the_literature_stands_only_beside_the_same_dataset_and_protocol(
    preset: str, protocol: LeaveOneSubjectOut | KFold, clips: int, classes: int, ours: float | None
) -> None:
    spec = get_preset(preset).model_copy(update={"protocol": protocol})
    study = StudyView(
        name="s",
        state=StudyState.COMPLETE,
        reason=None,
        spec=spec,
        dataset=spec.cache,
        fingerprint="f" * 64,
        classes=tuple("abcdefg"[:classes]),
        clips=clips,
        folds=10,
        split_hash="0" * 64,
        fold_order=None,
        trials=dict.fromkeys(TrialState, 0),
        folds_done=0,
        chance=1 / classes,
        best=None,
    )
    found = comparison_for(study)
    if found is not None:
        paper = 480 if classes == 6 else 327
        told = None if clips == paper else f"study s has {clips} clips, the paper {paper}"
        assert clips_note(study, found) == told
    assert (None if found is None else dict(found.approaches)[PAPER]) == ours
