"""A table of a report, and its formats: CSV for programs, LaTeX for papers, text for the page."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DASH = "-"


@dataclass(frozen=True)
class Percent:
    """A share (0 to 1) that is shown in percent."""

    share: float | None

    def __str__(self) -> str:
        return DASH if self.share is None else f"{100 * self.share:.2f} %"


@dataclass(frozen=True)
class Hours:
    """Seconds that are shown in hours or minutes."""

    seconds: float

    def __str__(self) -> str:
        hours = self.seconds / 3600
        return f"{hours:.1f} h" if hours >= 10 else f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"


Cell = str | int | float | bool | None | Percent | Hours


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under columns."""

    name: str
    """Name of its files, without the ending."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    marked: int | None = None
    """Index of the row about this study, if other rows are about other studies."""

    @property
    def right_aligned(self) -> list[bool]:
        """For each column, whether it holds numbers."""
        columns = zip(*self.rows, strict=True) if self.rows else [[] for _ in self.columns]
        return [any(_is_number(cell) for cell in column) for column in columns]

    def text(self) -> list[list[str]]:
        """The rows as shown text."""
        return [[cell_text(cell) for cell in row] for row in self.rows]


def cell_text(cell: Cell) -> str:
    """A cell as shown text."""
    match cell:
        case None:
            return DASH
        case bool():
            return str(cell).lower()
        case float():
            return f"{cell:.4g}"
        case _:
            return str(cell)


def write_csv(table: Table, path: Path) -> None:
    """Write a table as CSV with full precision: shares from 0 to 1, seconds; an empty cell for None."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.columns)
        writer.writerows([_raw(cell) for cell in row] for row in table.rows)


def write_latex(table: Table, path: Path) -> None:
    """Write a table as LaTeX for `\\input`; the document needs the package booktabs."""
    align = "".join("r" if right else "l" for right in table.right_aligned)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        " & ".join(latex_text(column) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    for index, row in enumerate(table.text()):
        cells = [latex_text(cell) for cell in row]
        if index == table.marked:
            cells = [rf"\textbf{{{cell}}}" for cell in cells]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def latex_text(text: str) -> str:
    """The text with LaTeX's special characters escaped."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float | Percent | Hours) and not isinstance(cell, bool)


def _raw(cell: Cell) -> str | int | float:
    match cell:
        case None | Percent(None):
            return ""
        case bool():
            return str(cell).lower()
        case Percent(share) if share is not None:
            return share
        case Hours(seconds):
            return seconds
        case str() | int() | float():
            return cell
    raise AssertionError(cell)
