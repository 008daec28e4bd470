"""Write a report: figures, tables, numbers, and the page that holds them all."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from report import figures
from report.architecture import draw_resulting, draw_searched
from report.findings import Findings, find
from report.material import Material, StudySource, gather
from report.page import write_page
from report.table import write_csv, write_latex
from report.tables import all_tables
from services.errors import InvalidInput

PAGE = "report.html"
NUMBERS = "report.json"


def write_report(source: StudySource, name: str, folder: Path) -> Findings:
    """Write the report of a study into a folder; it replaces an earlier report there.

    `report.html` needs no other file. `figures/` has SVG and PNG, `tables/` CSV and LaTeX, `report.json` every
    number. Figures and tables without data yet are left out, and the page says so.

    Args:
        source: where the study is read from.
        name: of the study.
        folder: created if missing.

    Raises:
        InvalidInput: the folder cannot be written, or the study does not cross-validate.
        FoldwiseError: as the source raises, such as NotFound or Unavailable.
    """
    material = gather(source, name)
    findings = find(material)
    tables = all_tables(material, findings)
    try:
        for part in ("figures", "tables"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            # An earlier report may have had figures and tables that this one has not.
            for file in (folder / part).iterdir():
                if file.suffix in {".svg", ".png", ".csv", ".tex"}:
                    file.unlink()
        with figures.figure_style():
            for title, figure in _figures(material, findings).items():
                figures.save(figure, folder / "figures", title)
        for table in tables.values():
            write_csv(table, folder / "tables" / f"{table.name}.csv")
            write_latex(table, folder / "tables" / f"{table.name}.tex")
        (folder / NUMBERS).write_text(findings.model_dump_json(indent=1) + "\n", encoding="utf-8")
        write_page(material, findings, tables, folder / "figures", folder / PAGE)
    except OSError as error:
        raise InvalidInput(
            f"cannot write the report to {error.filename or folder}: {error.strerror}; choose another folder",
            field="out",
        ) from error
    return findings


def _figures(material: Material, findings: Findings) -> dict[str, Figure]:
    study, shown = material.study, findings.shown
    drawn = {
        "searched-architecture": draw_searched(study.spec, len(study.classes)),
        "convergence": figures.draw_convergence(material),
    }
    if shown is not None:
        drawn["architecture"] = draw_resulting(shown.parameters, study.spec, len(study.classes))
        for kind in ("true", "predicted"):
            drawn[f"confusion-by-{kind}-class"] = figures.draw_confusion(findings, shown, kind)
        drawn["confusion-counts"] = figures.draw_confusion(findings, shown, "counts")
    if findings.importance:
        drawn["importance"] = figures.draw_importance(findings)
    return drawn
