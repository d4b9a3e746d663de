"""Training curves: loss and kNN accuracy against epochs, from Lightning's `metrics.csv`."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unmix.errors import UserError
from unmix.figures.style import STYLE, End, color_of, label_ends, line_of, marker_of, message
from unmix.results import RunResults

__all__ = ["Metrics", "curves", "read_metrics"]

# Column to epoch to value; epochs are counted when complete, so the first is 1.
Metrics = Mapping[str, Mapping[int, float]]

# For runs without results yet, whose method is unknown.
_COLORS = ("#0077BB", "#EE7733", "#009966", "#AA3377", "#33A5CC", "#CC3311", "#775500", "#555555")


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """Read the `metrics.csv` of Lightning's CSVLogger, whose rows have only some columns.

    Args:
        path: The file.

    Returns:
        For each column with numbers, complete epochs (from 1) to the mean of that epoch's rows.

    Raises:
        UserError: if the file cannot be read or has no `epoch` column.
    """
    sums: dict[str, dict[int, list[float]]] = {}
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if "epoch" not in (reader.fieldnames or ()):
                raise UserError(
                    f"{path}: has no column 'epoch'; it must be a metrics.csv of Lightning."
                )
            for row in reader:
                _add(sums, row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as metrics.csv ({error}).") from error
    return {
        name: {epoch: sum(values) / len(values) for epoch, values in sorted(epochs.items())}
        for name, epochs in sums.items()
    }


def _add(sums: dict[str, dict[int, list[float]]], row: Mapping[str, str | None]) -> None:
    """Add the numbers of one row; other values, as of an incomplete last row, are skipped."""
    numbers: dict[str, float] = {}
    for name, text in row.items():
        # Fields beyond the header have the key None and are a list.
        with suppress(ValueError):
            if isinstance(name, str) and text:
                numbers[name] = float(text)
    epoch = numbers.pop("epoch", None)
    if epoch is None:
        return
    for name, value in numbers.items():
        sums.setdefault(name, {}).setdefault(int(epoch) + 1, []).append(value)


@rc_context(STYLE)
def curves(
    metrics: Mapping[str, Metrics],
    results: Sequence[RunResults] = (),
    *,
    loss: str = "loss",
    accuracy: str = "knn",
) -> Figure:
    """Draw the training loss and the kNN accuracy of runs against epochs.

    Losses with and without a mixture are sums of different terms: compare their trends, not their
    values. A value that no run has gets no panel.

    Args:
        metrics: For each run's name, the result of `read_metrics`.
        results: Results of these runs, if any; they determine color and line style.
        loss: Column of the loss.
        accuracy: Column of the kNN top-1 accuracy in percent.
    """
    known = {run.name: run for run in results}
    styles = {}
    for number, name in enumerate(metrics):
        run = known.get(name)
        color = color_of(run.method) if run else _COLORS[number % len(_COLORS)]
        styles[name] = (color, run.mixture if run else "")
    panels = {"Training loss": loss, "kNN top-1 accuracy (%)": accuracy}
    shown = {
        label: lines for label, column in panels.items() if (lines := _values(metrics, column))
    }
    size = (4.7 * max(len(shown), 1), max(3.4, 1.0 + 0.19 * len(metrics)))
    figure = Figure(figsize=size, layout="constrained")
    if not shown:
        message(figure.add_subplot(), f"No run has “{loss}” or “{accuracy}” in its metrics.csv.")
        return figure
    labeled: set[str] = set()
    grid = figure.subplots(1, len(shown), squeeze=False)[0]
    # From the right, so that a name is written once, beside the last panel of its run.
    for axes, (label, lines) in reversed(list(zip(grid, shown.items(), strict=True))):
        axes.set(xlabel="Pretraining epochs", ylabel=label)
        ends = _draw(axes, lines, styles)
        label_ends(axes, [end for end in ends if end.text not in labeled])
        labeled |= {end.text for end in ends}
    return figure


def _values(metrics: Mapping[str, Metrics], column: str) -> dict[str, Mapping[int, float]]:
    """Return the values of a column for the runs that have it."""
    # Lightning renames a value that is logged per step and per epoch.
    found = {name: own.get(column) or own.get(f"{column}_epoch") for name, own in metrics.items()}
    return {name: values for name, values in found.items() if values}


def _draw(
    axes: Axes, lines: Mapping[str, Mapping[int, float]], styles: Mapping[str, tuple[str, str]]
) -> list[End]:
    """Draw one value of all runs; return the last finite points."""
    ends = []
    for name, values in lines.items():
        color, mixture = styles[name]
        xs, ys = list(values), list(values.values())
        axes.plot(xs, ys, line_of(mixture), color=color, **marker_of(mixture, len(xs)))
        finite = [(x, y) for x, y in values.items() if math.isfinite(y)]
        if finite:
            ends.append(End(*finite[-1], name, color))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    return ends
