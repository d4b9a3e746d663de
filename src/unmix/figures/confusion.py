"""Confusion matrices, normalized by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from unmix.errors import UserError
from unmix.figures.embedding import name_of
from unmix.figures.style import soft_ink, style, titled
from unmix.figures.widths import inches, write_caption

__all__ = ["confusion_matrix"]

# On light and on dark paper.
_FULL = ("#0B5CAD", "#58A6FF")
_MOST_NAMED, _MOST_NUMBERED = 40, 20


def confusion_matrix(
    panels: Mapping[str, ArrayLike],
    classes: Sequence[str],
    *,
    caption: str = "",
    width: str | float = "page",
    theme: str = "light",
) -> Figure:
    """Draw confusion matrices: of each class's images, the percentage predicted as each class.

    Rows are the true classes and sum to 100 %, so classes of different sizes compare. Cells have
    numbers up to 20 classes and names up to 40. A class without images has a hatched row.

    Args:
        panels: For each model's name, counts (C, C): row the true class, column the predicted one.
        classes: Names of the C classes.
        caption: Text below.
        width: "column", "page", or inches.
        theme: light, dark or inline.

    Raises:
        UserError: if a matrix does not match the classes, or there is none.
    """
    counts = {name: np.asarray(values, dtype=float) for name, values in panels.items()}
    for name, values in counts.items():
        if values.shape != (len(classes), len(classes)) or not len(classes):
            raise UserError(
                f"confusion_matrix: {name!r} has shape {values.shape}; it must be (C, C) for "
                f"{len(classes)} classes."
            )
    if not counts:
        raise UserError("confusion_matrix: give the counts of at least one model.")
    across = inches(width)
    columns = 1 if across < 5 else min(len(counts), 2)
    rows = -(-len(counts) // columns)
    named = max(len(name_of(i, classes)) for i in range(len(classes)))
    letters = 0.008 * named * _sizes(len(classes), across)[1]
    side = min((across - letters - 0.3) / columns, 4.2)
    with rc_context({**style(theme), "axes.grid": False}):
        titles = [titled(name, side) for name in counts]
        above = 0.16 * max(title.count("\n") for title in titles)
        height = rows * (side + letters + above + 0.55) + 0.1
        figure = Figure(figsize=(across, height), layout="constrained")
        cells = list(figure.subplots(rows, columns, squeeze=False).flat)
        for number, (axes, values) in enumerate(zip(cells, counts.values(), strict=False)):
            axes.set_title(titles[number])
            _draw(axes, values, classes, _sizes(len(classes), across), number % columns == 0)
        for axes in cells[len(counts) :]:
            axes.set_axis_off()
        write_caption(figure, caption)
        return figure


def _sizes(classes: int, across: float) -> tuple[float, float]:
    """Font sizes of the numbers in the cells, and of the names; 0 if there are no names."""
    size = float(np.clip(60 / classes, 3.2, 7)) * (0.85 if across < 5 else 1)
    return size, min(7, size + 1.5) if classes <= _MOST_NAMED else 0.0


def _draw(
    axes: Axes,
    counts: NDArray[np.float64],
    classes: Sequence[str],
    sizes: tuple[float, float],
    first: bool,
) -> None:
    n = len(classes)
    totals = counts.sum(axis=1, keepdims=True)
    share = 100 * counts / np.where(totals > 0, totals, 1)
    paper = rcParams["figure.facecolor"]
    colors = LinearSegmentedColormap.from_list("share", [paper, _FULL[_is_dark(to_rgb(paper))]])
    axes.imshow(share, cmap=colors, vmin=0, vmax=100, interpolation="nearest")
    axes.spines[:].set_visible(True)
    for row in np.flatnonzero(totals[:, 0] == 0):
        axes.axhspan(row - 0.5, row + 0.5, facecolor="none", edgecolor=soft_ink(), hatch="////",
                     linewidth=0)  # fmt: skip
    size, name_size = sizes
    if n <= _MOST_NUMBERED:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.5:
                axes.text(
                    column, row, f"{value:.0f}", ha="center", va="center", fontsize=size,
                    color="#FFFFFF" if _is_dark(colors(value / 100)) else "#111111",
                )  # fmt: skip
    axes.set_xlabel("predicted class", fontsize=8)
    axes.set_ylabel("true class" if first else "", fontsize=8)
    if n <= _MOST_NAMED:
        names = [name_of(i, classes) for i in range(n)]
        axes.set_xticks(range(n), names, rotation=90, fontsize=name_size)
        axes.set_yticks(range(n), names if first else [""] * n, fontsize=name_size)
        axes.tick_params(length=0)


def _is_dark(color: Sequence[float]) -> bool:
    red, green, blue = color[:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
