"""Training curves: loss and kNN accuracy against epochs, from Lightning's `metrics.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unmix.errors import UserError
from unmix.figures.accuracy import draw_band, note_bands
from unmix.figures.looks import Look
from unmix.figures.series import (
    Condition,
    Metrics,
    conditions_of,
    looks_for,
    notes_on_lines,
)
from unmix.figures.style import label_ends, message, style
from unmix.figures.widths import inches
from unmix.files import read_text
from unmix.results import RunResults
from unmix.schema import Epoch, checked, excerpt

__all__ = ["Metrics", "curves", "read_metrics"]


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
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        columns = reader.fieldnames or ()
        if "epoch" not in columns:
            raise UserError(
                f"{path}: has no column 'epoch'; it must be a metrics.csv of Lightning."
            )
        if len(set(columns)) != len(columns):
            twice = next(name for name in columns if columns.count(name) > 1)
            raise UserError(f"{path}: has the column {excerpt(twice)} twice.")
        for row in reader:
            _add(sums, row, f"{path}: line {reader.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as metrics.csv ({error}).") from error
    return {
        name: {epoch: sum(values) / len(values) for epoch, values in sorted(epochs.items())}
        for name, epochs in sums.items()
    }


def _add(
    sums: dict[str, dict[int, list[float]]], row: Mapping[str, str | None], where: str
) -> None:
    """Add the numbers of one row; other values, as of an incomplete last row, are skipped."""
    numbers: dict[str, float] = {}
    for name, text in row.items():
        # Fields beyond the header have the key None and are a list.
        with suppress(ValueError):
            if isinstance(name, str) and text:
                numbers[name] = float(text)
    if "epoch" not in numbers:
        return
    epoch = checked(Epoch, numbers.pop("epoch"), f"{where}: epoch")
    for name, value in numbers.items():
        sums.setdefault(name, {}).setdefault(epoch + 1, []).append(value)


def curves(
    conditions: Sequence[Condition] | Mapping[str, Metrics],
    results: Sequence[RunResults] = (),
    *,
    loss: str = "loss",
    accuracy: str = "knn",
    looks: Mapping[str, Look] | None = None,
    width: str | float | None = None,
    theme: str = "light",
) -> Figure:
    """Draw the training loss and the kNN accuracy against epochs: means over the seeds, with bands.

    Losses with and without a mixture are sums of different terms: compare their trends, not their
    values. A value that no run has gets no panel.

    Args:
        conditions: Conditions with their metrics; or, for each run's name, the result of
            `read_metrics`: these are grouped by their results.
        results: Results of these runs, if any.
        loss: Column of the loss.
        accuracy: Column of the kNN top-1 accuracy in percent.
        looks: How each condition is drawn; by default chosen for this figure.
        width: "column", "page", or inches; by default as the panels need.
        theme: light, dark or inline.
    """
    given = (
        conditions_of(results, conditions) if isinstance(conditions, Mapping) else list(conditions)
    )
    own = looks or looks_for(given)
    panels = {"Training loss": loss, "kNN top-1 accuracy (%)": accuracy}
    recorded = {label: [c.recorded(column) for c in given] for label, column in panels.items()}
    shown = {
        label: found
        for label, series in recorded.items()
        if (found := {one.name: p for one in series if (p := one.points())})
    }
    names = {name for found in shown.values() for name in found}
    with rc_context(style(theme)):
        across = 1.6 + 3.7 * max(len(shown), 1) if width is None else inches(width)
        size = (across, max(3.3, 1.0 + 0.21 * len(names)))
        figure = Figure(figsize=size, layout="constrained")
        if not shown:
            text = f"No run has “{loss}” or “{accuracy}” in its metrics.csv."
            message(figure.add_subplot(), text)
            return figure
        labeled: set[str] = set()
        grid = figure.subplots(1, len(shown), squeeze=False)[0]
        panel = dict(zip(shown, grid, strict=True))
        for label, axes in panel.items():
            axes.set(xlabel="Pretraining epochs", ylabel=label)
        # From the right, so that a name is written once, beside the last panel of its run.
        for label, axes in reversed(panel.items()):
            ends = [draw_band(axes, n, points, own[n]) for n, points in shown[label].items()]
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
            note_bands(axes, shown[label].values(), notes_on_lines(recorded[label]))
            # All or none: one name alone beside several lines would seem to be that of all.
            if not (own_names := {end.text for end in ends}) <= labeled:
                label_ends(axes, ends)
            labeled |= own_names
        return figure
