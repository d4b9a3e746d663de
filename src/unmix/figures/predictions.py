"""Sorted feature values of single images (the paper's Figure 3) with scale-free measures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from unmix.display import DASH, mean_and_std, measure_name, number
from unmix.errors import UserError
from unmix.figures.looks import Look, looks_of
from unmix.figures.style import shorten, soft_ink, style

__all__ = ["SCALES", "prediction_curves"]

SCALES = "Each column has its own scale, from zero to the largest value of its model."
"""What the figure says of its axes."""


# More points than a print can show only make the SVG larger.
_POINTS = 400

Measures = Mapping[str, Mapping[str, tuple[float, float]]]


def prediction_curves(
    images: ArrayLike,
    curves: Mapping[str, ArrayLike],
    measures: Measures | None = None,
    *,
    methods: Mapping[str, str] | None = None,
    baselines: Collection[str] = (),
    split: str = "test",
    looks: Mapping[str, Look] | None = None,
    theme: str = "light",
) -> Figure:
    """Draw, for each image, each model's pooled feature values in ascending order.

    Each column, a model, has one scale for all images, that of its largest value: models of other
    methods or losses have features of other norms, beside which small ones would be a flat line.
    Compare the forms, and the maxima, which are dashed lines with their value. The flattening in
    the paper's figure is mostly a smaller norm, so scale-invariant measures are written below.
    (Shen et al. 2020, Figure 3.)

    Args:
        images: uint8 `(N, 3, H, W)`.
        curves: For each model's label, its pooled features `(N, D)`; D may differ between models.
        measures: For each model's label, name of the measure to (mean, standard deviation) over
            all images of the split.
        methods: For each model's label, the method that sets its color; by default its first word.
        baselines: Labels of models trained without a mixture; their outlines are dotted.
        split: What the images are of: test, or training.
        looks: How each model is drawn; by default chosen for this figure.
        theme: light, dark or inline.

    Raises:
        UserError: if the numbers of images and of feature rows differ.
    """
    pictures = np.asarray(images)
    features = {label: np.asarray(values, dtype=float) for label, values in curves.items()}
    _check(pictures, features)
    known = methods or {}
    own = looks or looks_of(
        {
            label: (
                known.get(label, label.partition(" ")[0]),
                "none" if label in baselines else label,
            )
            for label in features
        }
    )
    with rc_context(style(theme)):
        return _figure(pictures, features, measures or {}, own, split)


def _figure(
    pictures: NDArray[Any],
    features: Mapping[str, NDArray[Any]],
    measures: Measures,
    looks: Mapping[str, Look],
    split: str,
) -> Figure:
    rows, columns = len(pictures), len(features)
    names = list(dict.fromkeys(name for values in measures.values() for name in values))
    below = 0.2 * (len(names) + 1)
    first = 1.5 if names else 1.0
    width = 1.65 if columns > 4 else 2.0
    figure = Figure(
        figsize=(first + width * columns, 1.12 * rows + 0.75 + below), layout="constrained"
    )
    grid = figure.add_gridspec(
        rows + 1,
        columns + 1,
        width_ratios=[first, *[width] * columns],
        height_ratios=[1.12] * rows + [below],
    )
    for row, picture in enumerate(pictures):
        photo = figure.add_subplot(grid[row, 0])
        photo.imshow(picture.transpose(1, 2, 0), interpolation="nearest")
        photo.set_axis_off()
    for column, (label, values) in enumerate(features.items(), start=1):
        cells = [figure.add_subplot(grid[row, column]) for row in range(rows)]
        _column(cells, values, looks[label])
        cells[0].set_title("\n".join(wrap(shorten(label, 44), 22)))
        cells[-1].set_xlabel("feature, sorted by value", fontsize=8)
    if names:
        over = "test set" if split == "test" else f"{split} images"
        heads = [f"{over}, mean ± std", *map(measure_name, names)]
        _texts(figure.add_subplot(grid[rows, 0]), heads, "left")
        for column, label in enumerate(features, start=1):
            lines = ["", *(_cell(measures.get(label, {}).get(name)) for name in names)]
            _texts(figure.add_subplot(grid[rows, column]), lines, "center")
    if columns > 1:
        figure.suptitle(SCALES, fontsize=7.5, color=soft_ink())
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


def _column(cells: Sequence[Axes], values: NDArray[Any], look: Look) -> None:
    """Draw a model's features of all images on one scale."""
    top, bottom = max(0.0, float(values.max())), min(0.0, float(values.min()))
    for axes, row in zip(cells, values, strict=True):
        _draw(axes, row, look)
        axes.set_ylim(bottom * 1.1, top * 1.25 or 1.0)
        axes.tick_params(labelbottom=axes is cells[-1])


def _draw(axes: Axes, values: NDArray[Any], look: Look) -> None:
    ordered = np.sort(values)
    last = len(ordered) - 1
    at = np.unique(np.linspace(0, last, min(_POINTS, last + 1)).round().astype(int))
    axes.fill_between(at, ordered[at], color=look.color, alpha=0.22, linewidth=0)
    line = ":" if look.dash == ":" else "-"
    axes.plot(at, ordered[at], line, color=look.color, linewidth=1.4)
    axes.axhline(ordered[-1], color=look.color, linestyle="--", linewidth=0.8)
    axes.set_xlim(0, max(last, 1))
    axes.set_xticks([0, last])
    axes.locator_params(axis="y", nbins=3)
    axes.annotate(
        f"max {number(float(ordered[-1]), 3)}",
        xy=(0, ordered[-1]),
        xytext=(4, 2),
        textcoords="offset points",
        fontsize=7.5,
        va="bottom",
    )


def _texts(axes: Axes, lines: Sequence[str], side: str) -> None:
    """Write one column of the table of measures."""
    axes.set_axis_off()
    for row, line in enumerate(lines):
        axes.text(
            0.5 if side == "center" else 0.0,
            1 - (row + 0.5) / len(lines),
            line,
            color=soft_ink() if side == "left" else None,
            fontsize=8,
            ha=side,
            va="center",
            transform=axes.transAxes,
        )


def _cell(value: tuple[float, float] | None) -> str:
    return DASH if value is None else mean_and_std(*value)
