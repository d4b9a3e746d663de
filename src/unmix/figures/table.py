"""The table of runs, for the console and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unmix.display import DASH, duration, measure_name, method_name, percent, rate
from unmix.html import table
from unmix.names import shown
from unmix.results import RunResults, protocols_of

__all__ = ["Baselines", "Cell", "ResultsTable", "results_table"]

# Baselines without training: name to protocol to top-1 in percent.
Baselines = Mapping[str, Mapping[str, float]]

_ALWAYS = ("knn", "linear")
_SETTINGS = ("data", "backbone", "size", "seed")


@dataclass(frozen=True)
class Cell:
    """One entry: what is written, and whether it is better than its reference by a test."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class ResultsTable:
    """A table of strings.

    Attributes:
        columns: Headings.
        numeric: For each column, whether it has numbers (right-aligned).
        rows: One cell per column.
    """

    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def _repr_html_(self) -> str:
        """The table in a notebook; what is better than its reference is bold."""
        best = [
            (r, c) for r, row in enumerate(self.rows) for c, cell in enumerate(row) if cell.best
        ]
        texts = [[cell.text for cell in row] for row in self.rows]
        return table(self.columns, texts, numeric=self.numeric, bold=best)

    def text(self) -> str:
        """Return the table as aligned lines; a star marks what is better than its reference."""
        # Every cell reserves a place for the star, so that digits are aligned.
        lines = [[f"{column} " for column in self.columns]]
        lines += [[cell.text + ("*" if cell.best else " ") for cell in row] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * (width - 1) + " " for width in widths])
        return "\n".join(" ".join(map(_pad, line, widths, self.numeric)).rstrip() for line in lines)


def _pad(text: str, width: int, numeric: bool) -> str:
    return text.rjust(width) if numeric else text.ljust(width)


def results_table(
    results: Sequence[RunResults], baselines: Baselines | None = None
) -> ResultsTable:
    """Make a table: baselines without training, then runs without mixtures, then with.

    Settings that differ between the runs get a column. An accuracy that is not from the run's last
    epoch says which it is from. Nothing is marked as the best: each is a single run, and between
    seeds they vary. `unmix.commands.compare` marks conditions that are better over paired seeds.

    Args:
        results: The runs.
        baselines: Accuracies without training, `{"raw pixels": {"knn": 39.5}}`.
    """
    others = baselines or {}
    protocols = list(dict.fromkeys((*_ALWAYS, *protocols_of(results))))
    settings = [name for name in _SETTINGS if len({_setting(run, name) for run in results}) > 1]
    runs = sorted(results, key=lambda run: not run.baseline)
    columns = ["run", "method", "mixture", *settings, "epochs"]
    numeric = [column in ("epochs", "size", "seed") for column in columns]
    rows = [[name, *[DASH] * (len(columns) - 1)] for name in others]
    rows += [
        [
            *(run.name, method_name(run.method), run.mixture),
            *(_setting(run, name) for name in settings),
            str(run.epochs),
        ]
        for run in runs
    ]
    cells = [[Cell(shown(text)) for text in row] for row in rows]
    for protocol in protocols:
        values = [accuracies.get(protocol) for accuracies in others.values()]
        finals = [run.final(protocol) for run in runs]
        values += [row.top1 if row else None for row in finals]
        texts = [DASH if value is None else percent(value) for value in values]
        for index, (run, row) in enumerate(zip(runs, finals, strict=True), start=len(others)):
            if row and row.epoch != run.epochs:
                texts[index] += f" (epoch {row.epoch})"
        _append(cells, texts)
    for key, text in (("images_per_second", rate), ("seconds", duration)):
        numbers = [None] * len(others) + [_measure(run, key) for run in runs]
        texts = [DASH if value is None else text(value) for value in numbers]
        _append(cells, texts)
    columns += [measure_name(name) for name in protocols] + ["images/s", "training time"]
    numeric += [True] * (len(columns) - len(numeric))
    return ResultsTable(tuple(columns), tuple(numeric), tuple(map(tuple, cells)))


def _append(cells: list[list[Cell]], texts: Sequence[str]) -> None:
    for row, text in zip(cells, texts, strict=True):
        row.append(Cell(text))


def _setting(run: RunResults, name: str) -> str:
    if name == "backbone":
        return run.backbone if run.width == 1 else f"{run.backbone} x{run.width:g}"
    return str(getattr(run, name))


def _measure(run: RunResults, key: str) -> float | None:
    value = run.training.get(key)
    return float(value) if isinstance(value, int | float) else None
