"""The table of runs, for the console and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unmix.display import (
    DASH,
    duration,
    measure_name,
    method_name,
    padded,
    percent,
    rate,
    text_width,
)
from unmix.html import table
from unmix.names import shown
from unmix.results import RunResults, is_transfer, protocols_of

__all__ = ["Baselines", "Cell", "ResultsTable", "results_table"]

# Baselines without training: name to protocol to top-1 in percent.
Baselines = Mapping[str, Mapping[str, float]]

_ALWAYS = ("knn", "linear")
_SETTINGS = ("data", "backbone", "size", "seed")


@dataclass(frozen=True)
class Cell:
    """One entry.

    Attributes:
        text: What is written.
        best: Whether it is better than its reference, by a test.
        value: The number behind the text, if there is one.
        spread: Its standard deviation.
    """

    text: str
    best: bool = False
    value: float | None = None
    spread: float | None = None


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
        widths = [max(map(text_width, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * (width - 1) + " " for width in widths])
        rows = [" ".join(map(padded, line, widths, self.numeric)) for line in lines]
        return "\n".join(row.rstrip() for row in rows)


def results_table(
    results: Sequence[RunResults],
    baselines: Baselines | None = None,
    conditions: Mapping[str, str] | None = None,
) -> ResultsTable:
    """Make a table: baselines without training, then runs without mixtures, then with.

    Settings that differ between the runs get a column. An accuracy that is not from the run's last
    epoch says which it is from. Nothing is marked as the best: each is a single run, and between
    seeds they vary. `unmix.commands.compare` marks conditions that are better over paired seeds.

    Args:
        results: The runs.
        baselines: Accuracies without training, `{"raw pixels": {"knn": 39.5}}`.
        conditions: For each run's name that of its condition, which stands in place of its method,
            mixture and settings; runs of one condition follow each other.
    """
    others = baselines or {}
    runs = sorted(results, key=lambda run: not run.baseline)
    if conditions is not None:
        places = list(dict.fromkeys(conditions.values()))
        runs.sort(key=lambda run: (places.index(conditions[run.name]), run.seed))
    rows = [[Cell(shown(text)) for text in row] for row in _described(runs, conditions)]
    protocols = protocols_of(results)
    if not any(is_transfer(protocol) for protocol in protocols):
        protocols = list(dict.fromkeys((*_ALWAYS, *protocols)))
    head = _columns(runs, conditions)
    for row, run in zip(rows, runs, strict=True):
        row += [_accuracy(run, protocol) for protocol in protocols]
        for key, text in (("images_per_second", rate), ("seconds", duration)):
            value = _measure(run, key)
            mark = " (busy)" if key == "seconds" and run.busy is not None else ""
            row.append(Cell(DASH if value is None else text(value) + mark, value=value))
    above = [
        [
            Cell(shown(name)),
            *[Cell(DASH)] * (len(head) - 1),
            *(_percent(accuracies.get(protocol)) for protocol in protocols),
            *[Cell(DASH)] * 2,
        ]
        for name, accuracies in others.items()
    ]
    columns = [*head, *map(measure_name, protocols), "images/s", "training time"]
    numeric = [column in ("epochs", "size", "seed") for column in head]
    numeric += [True] * (len(columns) - len(head))
    return ResultsTable(tuple(columns), tuple(numeric), tuple(map(tuple, (*above, *rows))))


def _columns(runs: Sequence[RunResults], conditions: Mapping[str, str] | None) -> list[str]:
    if conditions is not None:
        return ["run", "condition", "seed", "epochs"]
    settings = [name for name in _SETTINGS if len({_setting(run, name) for run in runs}) > 1]
    return ["run", "method", "mixture", *settings, "epochs"]


def _described(runs: Sequence[RunResults], conditions: Mapping[str, str] | None) -> list[list[str]]:
    """What the runs are, under the headings of `_columns`."""
    if conditions is not None:
        return [[run.name, conditions[run.name], str(run.seed), run.progress] for run in runs]
    settings = _columns(runs, None)[3:-1]
    return [
        [
            *(run.name, method_name(run.method), run.mixture),
            *(_setting(run, name) for name in settings),
            run.progress,
        ]
        for run in runs
    ]


def _accuracy(run: RunResults, protocol: str) -> Cell:
    row = run.final(protocol)
    if row is None:
        return Cell(DASH)
    if row.epoch != run.epochs:  # a CSV must have the note too, so there is no number alone
        return Cell(f"{percent(row.top1)} (epoch {row.epoch})")
    return Cell(percent(row.top1), value=row.top1)


def _percent(value: float | None) -> Cell:
    return Cell(DASH if value is None else percent(value), value=value)


def _setting(run: RunResults, name: str) -> str:
    if name == "backbone":
        return run.backbone if run.width == 1 else f"{run.backbone} x{run.width:g}"
    return str(getattr(run, name))


def _measure(run: RunResults, key: str) -> float | None:
    value = run.training.get(key)
    return float(value) if isinstance(value, int | float) else None
