"""Sorted feature values of single images (the paper's Figure 3) with scale-free measures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from unmix.display import DASH, mean_and_std, measure_name, number
from unmix.errors import UserError
from unmix.figures.style import GRAY, STYLE, color_of, shorten

__all__ = ["prediction_curves"]

# More points than a print can show only make the SVG larger.
_POINTS = 400

Measures = Mapping[str, Mapping[str, tuple[float, float]]]


@rc_context(STYLE)
def prediction_curves(
    images: ArrayLike,
    curves: Mapping[str, ArrayLike],
    measures: Measures | None = None,
    *,
    methods: Mapping[str, str] | None = None,
    baselines: Collection[str] = (),
) -> Figure:
    """Draw, for each image, each model's pooled feature values in ascending order.

    A row has one scale for all models; dashed lines are the maxima. The flattening in the paper's
    figure is mostly a smaller norm, so scale-invariant measures are written below.
    (Shen et al. 2020, Figure 3.)

    Args:
        images: uint8 `(N, 3, H, W)`.
        curves: For each model's label, its pooled features `(N, D)`; D may differ between models.
        measures: For each model's label, name of the measure to (mean, standard deviation) over
            the whole test set.
        methods: For each model's label, the method that sets its color; by default its first word.
        baselines: Labels of models trained without a mixture; their outlines are dotted.

    Raises:
        UserError: if the numbers of images and of feature rows differ.
    """
    pictures = np.asarray(images)
    features = {label: np.asarray(values, dtype=float) for label, values in curves.items()}
    _check(pictures, features)
    rows, columns = len(pictures), len(features)
    names = list(dict.fromkeys(name for values in (measures or {}).values() for name in values))
    below = 0.2 * (len(names) + 1)
    figure = Figure(figsize=(1.4 + 2.4 * columns, 1.25 * rows + 0.4 + below), layout="constrained")
    grid = figure.add_gridspec(
        rows + 1,
        columns + 1,
        width_ratios=[1.0, *[2.2] * columns],
        height_ratios=[1.25] * rows + [below],
    )
    known = methods or {}
    colors = {label: color_of(known.get(label, label.partition(" ")[0])) for label in features}
    for row, picture in enumerate(pictures):
        photo = figure.add_subplot(grid[row, 0])
        photo.imshow(picture.transpose(1, 2, 0), interpolation="nearest")
        photo.set_axis_off()
        here = {label: values[row] for label, values in features.items()}
        cells = [figure.add_subplot(grid[row, column]) for column in range(1, columns + 1)]
        _row(cells, here, colors, baselines)
        for axes, label in zip(cells, features, strict=True):
            axes.tick_params(labelbottom=row == rows - 1)
            if row == 0:
                axes.set_title(shorten(label, 30), color=colors[label])
            if row == rows - 1:
                axes.set_xlabel("feature, sorted by value", fontsize=8)
    if names and measures:
        heads = ["test set, mean ± std", *map(measure_name, names)]
        _column(figure.add_subplot(grid[rows, 0]), heads, GRAY, "left")
        for column, label in enumerate(features, start=1):
            lines = ["", *(_cell(measures.get(label, {}).get(name)) for name in names)]
            _column(figure.add_subplot(grid[rows, column]), lines, colors[label], "center")
    return figure


def _check(images: NDArray[Any], features: Mapping[str, NDArray[Any]]) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise UserError(
            f"images: shape {images.shape} is wrong; it must be (N, 3, H, W), N at least 1."
        )
    if not features:
        raise UserError("curves: there is no model; give at least one.")
    for label, values in features.items():
        if values.ndim != 2 or len(values) != len(images) or not values.shape[1]:
            raise UserError(
                f"curves: {label!r} has shape {values.shape}; it must be ({len(images)}, D), "
                "one row for each image."
            )


def _row(
    cells: Sequence[Axes],
    values: Mapping[str, NDArray[Any]],
    colors: Mapping[str, str],
    baselines: Collection[str],
) -> None:
    """Draw one image's features for all models on one scale."""
    top = max(0.0, *(float(row.max()) for row in values.values()))
    bottom = min(0.0, *(float(row.min()) for row in values.values()))
    for axes, (label, row) in zip(cells, values.items(), strict=True):
        _draw(axes, row, colors[label], ":" if label in baselines else "-")
        axes.set_ylim(bottom * 1.1, top * 1.18 or 1.0)
        axes.tick_params(labelleft=axes is cells[0])


def _draw(axes: Axes, values: NDArray[Any], color: str, line: str) -> None:
    ordered = np.sort(values)
    last = len(ordered) - 1
    at = np.unique(np.linspace(0, last, min(_POINTS, last + 1)).round().astype(int))
    axes.fill_between(at, ordered[at], color=color, alpha=0.22, linewidth=0)
    axes.plot(at, ordered[at], line, color=color, linewidth=1.2)
    axes.axhline(ordered[-1], color=color, linestyle="--", linewidth=0.8)
    axes.set_xlim(0, max(last, 1))
    axes.set_xticks([0, last])
    axes.locator_params(axis="y", nbins=4)
    axes.annotate(
        f"max {number(float(ordered[-1]), 3)}",
        xy=(0, ordered[-1]),
        xytext=(4, 2),
        textcoords="offset points",
        fontsize=7.5,
        color=color,
        va="bottom",
    )


def _column(axes: Axes, lines: Sequence[str], color: str, side: str) -> None:
    """Write one column of the table of measures."""
    axes.set_axis_off()
    for row, line in enumerate(lines):
        axes.text(
            0.5 if side == "center" else 0.0,
            1 - (row + 0.5) / len(lines),
            line,
            color=color,
            fontsize=8,
            ha=side,
            va="center",
            transform=axes.transAxes,
        )


def _cell(value: tuple[float, float] | None) -> str:
    return DASH if value is None else mean_and_std(*value)
