"""A study's figure and report."""

from __future__ import annotations

from pathlib import Path

from unmix.commands.compare_report import differences_of
from unmix.commands.study_report import study_report
from unmix.display import measure_title
from unmix.figures import save
from unmix.figures.paired import Panel, paired_dots
from unmix.figures.report import write_page as write_html
from unmix.figures.table import Cell, ResultsTable
from unmix.studies import StudyResults

__all__ = ["panels", "results_table", "write_page"]

_TITLES = {"knn": "kNN top-1 (%)", "linear": "linear probe top-1 (%)"}


def results_table(found: StudyResults) -> ResultsTable:
    """What needs no training and the conditions, with their cost and accuracies."""
    columns = found.columns()
    numeric = [column not in ("condition", "published") for column in columns]
    rows = tuple(tuple(map(Cell, row)) for row in found.rows())
    return ResultsTable(tuple(columns), tuple(numeric), rows)


def panels(found: StudyResults) -> dict[str, Panel]:
    """What the figure of a study shows, a panel per protocol."""
    differences = differences_of(found.findings)
    return {
        _TITLES.get(protocol, protocol): Panel(
            {name: found.accuracies(name, protocol) for name in found.study.conditions},
            {
                name: sum(values.values()) / len(values)
                for name, by_protocol in found.baselines.items()
                if (values := by_protocol.get(protocol))
            },
            [each for each in differences if each.protocol == measure_title(protocol)],
        )
        for protocol in found.study.protocols
    }


def write_page(found: StudyResults, folder: Path) -> Path:
    """Write `seeds.png`, `seeds.svg` and `report.html`; the path of the report.

    Raises:
        UserError: if a file cannot be written.
    """
    save(paired_dots({"": panels(found)}, shared=False), folder / "seeds")
    return write_html(folder / "report.html", study_report(found, folder))
