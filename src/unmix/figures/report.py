"""The report: tables and figures of runs in one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from matplotlib.figure import Figure

from unmix.display import counted, duration, measure_name, method_name, value_text
from unmix.figures.saving import render
from unmix.figures.table import Baselines, ResultsTable, results_table
from unmix.files import atomic_write
from unmix.names import shown
from unmix.results import Evaluation, RunResults, described, details_in_words

__all__ = ["write_report", "write_study_report"]

CITATIONS = (
    "Zhiqiang Shen, Zechun Liu, Zhuang Liu, Marios Savvides, Trevor Darrell. Rethinking Image "
    "Mixture for Unsupervised Visual Representation Learning. arXiv:2003.05438v1, 2020. "
    "(Mixtures in image space.)",
    "Zhiqiang Shen, Zechun Liu, Zhuang Liu, Marios Savvides, Trevor Darrell, Eric Xing. Un-Mix: "
    "Rethinking Image Mixtures for Unsupervised Visual Representation Learning. AAAI 2022. "
    "(Mixtures in label space.)",
)


def write_report(
    path: Path,
    results: Sequence[RunResults],
    figures: Mapping[str, Figure],
    baselines: Baselines | None = None,
    settings: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
    *,
    captions: Mapping[str, str] | None = None,
    verdicts: Sequence[str] = (),
    title: str = "Pretraining with image mixtures",
) -> None:
    """Write one HTML file with the table of runs, the figures, and how to repeat the runs.

    The file loads nothing: figures are embedded as SVG, styles are inline, there is no script.

    Args:
        path: The file.
        results: The runs.
        figures: Title to figure, in the order in which they appear.
        baselines: Accuracies without training, `{"raw pixels": {"knn": 39.5}}`.
        settings: Common settings of the runs that are not in the table.
        notes: Sentences below the summary, one per paragraph.
        captions: Captions by title of the figure.
        verdicts: What the comparison of the runs shows, in sentences that the page opens with.
        title: Heading of the page.

    Raises:
        UserError: if the file cannot be written.
    """
    _write(
        path,
        "report.html",
        title=title,
        verdicts=verdicts,
        summary=_summary(results),
        notes=notes,
        table=results_table(results, baselines),
        figures=[
            {
                "title": name,
                "alt": name,
                "caption": (captions or {}).get(name, ""),
                "source": _source(figure),
            }
            for name, figure in figures.items()
        ],
        settings=_flat(settings or {}),
        runs=[_details(run) for run in results],
    )


def write_study_report(
    path: Path,
    *,
    title: str,
    verdicts: Sequence[str],
    notes: Sequence[str],
    figure: Figure,
    caption: str,
    table: ResultsTable,
    cells: Sequence[Mapping[str, Any]],
) -> None:
    """Write one HTML file that opens with a study's verdict; it loads nothing.

    Args:
        path: The file.
        title: The first verdict.
        verdicts: The others.
        notes: Sentences below them, one per paragraph.
        figure: The runs by condition and seed.
        caption: What the figure shows.
        table: The conditions.
        cells: What each run's JSON holds.

    Raises:
        UserError: if the file cannot be written.
    """
    _write(
        path,
        "study.html",
        title=title,
        verdicts=verdicts,
        summary="",
        notes=notes,
        figure={"title": "", "alt": title, "caption": caption, "source": _source(figure)},
        table=table,
        runs=[_cell_details(cell) for cell in cells],
    )


def _write(path: Path, name: str, **content: Any) -> None:
    folder = resources.files("unmix.figures")
    environment = Environment(
        loader=FunctionLoader(lambda file: folder.joinpath(file).read_text(encoding="utf-8")),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template(name).render(citations=CITATIONS, **content)
    atomic_write(Path(path), page.encode(errors="backslashreplace"))


def _cell_details(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell of a study: its command, and everything that its JSON has."""
    groups = {
        "Accuracies, top-1 in percent": cell["accuracies"],
        "Settings": cell["settings"],
        "Hardware": cell.get("hardware", {}),
        "Versions": {**cell["code"], **cell.get("versions", {})},
    }
    return {
        "name": shown(f"{cell['condition']}, seed {cell['seed']}"),
        "command": shown(str(cell.get("command", ""))),
        "groups": [(heading, _flat(items)) for heading, items in groups.items() if items],
    }


def _source(figure: Figure) -> str:
    """Return a figure as a data URI; inline SVGs would share their element ids in one page."""
    return "data:image/svg+xml;base64," + base64.b64encode(render(figure, "svg")).decode()


def _summary(results: Sequence[RunResults]) -> str:
    """Describe the runs in a sentence or two."""
    if not results:
        return "No run is in this report."
    runs = counted(len(results), "run") if len(results) > 1 else "One run"
    methods = _join(method_name(run.method) for run in results)
    networks = _join(f"{run.backbone} of width {run.width:g}" for run in results)
    sizes = _join(f"{run.size}" for run in results)
    data = _join(shown(run.data) for run in results)
    mixed = _join(run.mixture for run in results if not run.baseline)
    plain = "without a mixture" if any(run.baseline for run in results) else ""
    how = " and ".join(part for part in (plain, f"with {mixed}" if mixed else "") if part)
    low, high = min(run.epochs for run in results), max(run.epochs for run in results)
    epochs = f"{low} to {high} epochs" if low < high else counted(low, "epoch")
    text = f"{runs} of {methods} on {data}: {networks}, images of {sizes} pixels, {epochs}, {how}."
    seconds = [run.training.get("seconds") for run in results]
    known = [value for value in seconds if isinstance(value, int | float)]
    if len(known) == len(results):
        text += f" Training took {duration(sum(known))} in all."
    if not any(run.evaluations for run in results):
        text += " The images have no labels, so there are no accuracies."
    return text


def _join(words: Iterable[str]) -> str:
    """Join distinct words with commas and "and"."""
    once = list(dict.fromkeys(words))
    return " and ".join([", ".join(once[:-1]), once[-1]] if len(once) > 1 else once)


def _details(run: RunResults) -> dict[str, Any]:
    """Collect all results of a run."""
    settings = {
        name: getattr(run, name)
        for name in ("method", "mixture", "data", "backbone", "width", "size", "epochs", "seed")
    }
    # Rows of one protocol and epoch may differ in their settings.
    rows = {f"{described(row)}, epoch {row.epoch}": _evaluation(row) for row in run.evaluations}
    groups = {
        "Settings": settings,
        "Evaluations": rows,
        "Training": run.training,
        "Hardware": run.hardware,
        "Versions": run.versions,
    }
    return {
        "name": shown(run.name),
        "command": shown(run.command),
        "groups": [(heading, _flat(items)) for heading, items in groups.items() if items],
    }


def _evaluation(row: Evaluation) -> str:
    top5 = "" if row.top5 is None else f", top-5 {row.top5:.2f}"
    details = f", {details_in_words(row.details)}" if row.details else ""
    return f"top-1 {row.top1:.2f}{top5}{details}"


def _flat(items: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Turn nested settings into rows of name and text."""
    rows: list[tuple[str, str]] = []
    for name, item in items.items():
        label = prefix + measure_name(name)
        if isinstance(item, Mapping):
            rows += _flat(item, f"{label}, ")
        else:
            rows.append((label, value_text(item, name)))
    return rows
