"""The report as one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from report.findings import Findings
from report.material import Material
from report.selection import selection_warning
from report.table import Hours, Percent, Table
from services.contracts import TrialState, TrialView
from services.intervals import RESAMPLES
from services.revision import running_revision
from services.score_names import OBJECTIVE_NAMES

MAX_TRIALS_LISTED = 20
"""Trials in the table of the page; the CSV file has all."""


def write_page(
    material: Material, findings: Findings, tables: Mapping[str, Table], figures: Path, path: Path
) -> None:
    """Write the page.

    Args:
        material: describes the study.
        findings: all numbers of the page.
        tables: by name; missing tables are left out.
        figures: folder with the SVG files that the page embeds.
        path: of the page.
    """
    environment = Environment(
        loader=PackageLoader("report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals["figure"] = lambda name: _image(figures / f"{name}.svg")
    environment.filters["percent"] = lambda share: str(Percent(share))
    environment.filters["hours"] = lambda seconds: str(Hours(seconds))
    objective = OBJECTIVE_NAMES[material.study.spec.objective]
    ended = findings.trials[TrialState.COMPLETE] + findings.trials[TrialState.PRUNED]
    text = environment.get_template("report.html.jinja").render(
        study=material.study,
        found=findings,
        shown=findings.shown,
        tables=tables,
        drawn={file.stem for file in figures.glob("*.svg")},
        listed=_listed(material, tables["trials"]),
        warning=selection_warning(material.study.spec, ended),
        objective=objective,
        objective_title=objective[0].upper() + objective[1:],
        resamples=f"{RESAMPLES:,}",
        version=version("foldwise"),
        revision=running_revision(),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    path.write_text(text, encoding="utf-8")


def _image(svg: Path) -> Markup:
    # Embedded as an image: as inline elements, the ids of two figures could collide.
    return Markup(f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode()}")  # noqa: S704


def _listed(material: Material, trials: Table) -> Table:
    """The trials that the page shows: the best complete ones, then those of highest accuracy so far."""

    def rank(trial: TrialView) -> tuple[bool, float]:
        complete = trial.value is not None
        return complete, (trial.value if complete else trial.running_accuracy) or 0.0

    # A row of the table for each trial, in the same order.
    places = sorted(range(len(material.trials)), key=lambda n: rank(material.trials[n]), reverse=True)
    best = [trials.rows[place] for place in places[:MAX_TRIALS_LISTED]]
    return Table(
        name=trials.name,
        caption=trials.caption,
        columns=trials.columns,
        # The numbers that a rule compared are only in the CSV file.
        rows=[(*row[:-1], str(row[-1]).partition(" (")[0]) for row in best],
    )
