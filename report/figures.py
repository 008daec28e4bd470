"""The plots of a report: convergence, confusion, importance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from report.findings import Findings, Shown
from report.material import Material
from services.contracts import TrialState
from services.score_names import OBJECTIVE_NAMES
from services.search_space import title_of

COLUMN = 3.35
"""Width in inches of one column of a two-column paper."""

PAGE = 7.0
"""Width in inches of both columns."""

PNG_DPI = 300
"""Pixels per inch of PNG files."""

# Okabe and Ito's colours, which can be told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, VERMILLION, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Draw letters as outlines, which look the same in every viewer.
    "svg.fonttype": "path",
    # A fixed salt, so that the same study gives the same bytes.
    "svg.hashsalt": "foldwise",
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Context that draws for print: small type, thin lines."""
    with mpl.rc_context(_STYLE):
        yield


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure as SVG and as PNG."""
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=PNG_DPI, metadata={"Software": None})
    plt.close(figure)


def draw_convergence(material: Material) -> Figure:
    """Score by trial (the paper's Fig. 2): complete trials, pruned trials at their end, the best so far."""
    figure, axes = plt.subplots(figsize=(COLUMN, 2.6), layout="constrained")
    objective = material.study.spec.objective
    complete = [t for t in material.trials if t.state == TrialState.COMPLETE and t.value is not None]
    pruned = [t for t in material.trials if t.state == TrialState.PRUNED and t.running_accuracy is not None]
    if pruned:
        axes.plot(
            [t.number for t in pruned],
            [100 * (t.score(objective) or 0) for t in pruned],
            **_points("v", GRAY, len(material.trials)),
            label=f"pruned, over its finished folds ({len(pruned)})",
        )
    if complete:
        axes.plot(
            [t.number for t in complete],
            [100 * (t.value or 0) for t in complete],
            **_points("x", VERMILLION, len(material.trials)),
            label=f"complete ({len(complete)})",
        )
        best = list(accumulate(((t.value or 0) for t in complete), max))
        axes.step(
            [*(t.number for t in complete), material.trials[-1].number],
            [100 * value for value in (*best, best[-1])],
            where="post",
            color=BLUE,
            linewidth=1,
            label="best complete trial so far",
        )
    for rule in material.study.spec.pruning:
        if (threshold := rule.drawn_threshold(objective)) is not None:
            axes.axhline(100 * threshold, color="black", linewidth=0.8, linestyle="--")
            axes.annotate(
                f"pruning threshold {100 * threshold:g} %",
                (1, 100 * threshold),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="right",
                fontsize=6,
            )
    axes.set(xlabel="trial", ylabel=f"{OBJECTIVE_NAMES[objective]} (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.08)
    if complete or pruned:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, handletextpad=0.4, columnspacing=1.2)
    return figure


def draw_confusion(findings: Findings, shown: Shown, kind: str) -> Figure:
    """A confusion matrix (the paper's Figs. 5 and 6).

    Args:
        findings: give the names of the classes.
        shown: gives the counts.
        kind: `true` divides each row by its sum, `predicted` each column by its sum; `counts` divides nothing.
    """
    classes = list(findings.data.class_counts)
    counts = np.asarray(shown.confusion, dtype=float)
    totals = counts.sum(axis=1 if kind == "true" else 0, keepdims=True)
    share = (
        counts if kind == "counts" else np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    )
    top = max(1.0, float(share.max())) if kind == "counts" else 1.0
    figure, axes = plt.subplots(figsize=(COLUMN, 0.88 * COLUMN), layout="constrained")
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=top)
    small = 6.5 if len(classes) <= 8 else 5
    for row, column in np.ndindex(share.shape):
        value = float(share[row, column])
        axes.text(
            column,
            row,
            f"{value:.0f}" if kind == "counts" else _short(value),
            ha="center",
            va="center",
            fontsize=small,
            color="white" if value > 0.55 * top else "black" if value else GRAY,
        )
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    words = {"true": "share of the true class", "predicted": "share of the predicted class", "counts": "clips"}
    bar = figure.colorbar(image, ax=axes, shrink=0.75, pad=0.02, label=words[kind])
    bar.outline.set_visible(False)
    bar.ax.tick_params(width=0.5, length=2)
    return figure


def draw_importance(findings: Findings) -> Figure:
    """Bar chart of parameter importance, the most important parameter on top."""
    names = [title_of(name) for name in findings.importance]
    shares = [100 * share for share in findings.importance.values()]
    figure, axes = plt.subplots(figsize=(COLUMN, 0.5 + 0.19 * len(names)), layout="constrained")
    bars = axes.barh(range(len(names)), shares, color=BLUE, height=0.7)
    axes.bar_label(bars, [f"{share:.1f}" for share in shares], padding=2, fontsize=6)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel=f"importance (%), {findings.importance_trials} complete trials")
    axes.margins(x=0.1)
    return figure


def _points(marker: str, colour: str, trials: int) -> dict[str, Any]:
    size = 4.0 if trials <= 100 else 2.5
    return {
        "linestyle": "none",
        "marker": marker,
        "color": colour,
        "markersize": size,
        "markeredgewidth": 0.9 if trials <= 100 else 0.6,
        "markerfacecolor": "none",
    }


def _short(share: float) -> str:
    """A share in the paper's format: 0.96, 0.022, 0, 1."""
    return f"{share:.2g}" if share else "0"
