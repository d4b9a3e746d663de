"""Softmax over images of clean and mixed images (Figure 1 of Shen et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from numpy.typing import ArrayLike, NDArray

from unmix.errors import UserError
from unmix.figures.style import shorten, soft_ink, style
from unmix.figures.widths import inches, write_caption

__all__ = ["BARS", "SoftmaxInput", "SoftmaxModel", "instance_softmax"]

BARS = 6
"""How many of the largest probabilities are drawn."""

_FIRST, _SECOND, _OTHER = "#0077BB", "#E06C20", "#9A9AA0"
_ROW, _LINE = 0.76, 0.135
# Where the bars of A and B stand behind the largest.
_APART = (BARS + 1.6, BARS + 2.6)


@dataclass(frozen=True)
class SoftmaxInput:
    """One row of the figure: an image that models predict for.

    Attributes:
        pixels: uint8 (3, H, W).
        label: What it is, such as "A" or "0.5 A + 0.5 B".
        first: The class of image A, whose bar is solid.
        second: The class of image B, whose bar is hatched.
        apart: Whether there is a line above the row.
    """

    pixels: ArrayLike
    label: str
    first: int
    second: int
    apart: bool = False


@dataclass(frozen=True)
class SoftmaxModel:
    """One column of the figure: a model.

    Attributes:
        label: Its title.
        probabilities: For each input a distribution over C classes; C may differ between models.
        summary: Lines below the column, such as means over more images.
    """

    label: str
    probabilities: Sequence[ArrayLike]
    summary: Sequence[str] = ()


def instance_softmax(
    inputs: Sequence[SoftmaxInput],
    models: Sequence[SoftmaxModel],
    *,
    caption: str = "",
    width: str | float = "page",
    theme: str = "light",
) -> Figure:
    """Draw each model's largest probabilities for clean and mixed images, with their entropies.

    A class is an image; behind the largest stand the bars of images A and B. All panels have
    one scale, up to the largest probability; a dotted line is the uniform distribution.
    (Shen et al. 2020, Figure 1.)

    Args:
        inputs: The rows.
        models: The columns, such as a model before and after training.
        caption: Text below.
        width: "column", "page", or inches.
        theme: light, dark or inline.

    Raises:
        UserError: if there is nothing to draw, or probabilities are no distribution.
    """
    if not inputs or not models:
        raise UserError("instance_softmax: give at least one input and one model.")
    rows, columns = len(inputs), len(models)
    all_p = [[_checked(model, row) for model in models] for row in range(rows)]
    top = max(float(p.max()) for row in all_p for p in row)
    across = inches(width)
    cell = (across - 0.75) / (columns + 0.46)
    size = 6.5 if cell > 1.25 else 5.2
    letters = int(72 * cell / (0.56 * size))
    below = [_wrapped(model.summary, letters) for model in models]
    lines = max(map(len, below))
    titles = max(model.label.count("\n") for model in models) + 1
    with rc_context({**style(theme), "axes.grid": False, "hatch.linewidth": 0.7}):
        height = 0.5 + 0.15 * titles + _ROW * rows + _LINE * (lines + 1)
        engine = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.015, hspace=0.03)
        figure = Figure(figsize=(across, height), layout=engine)
        grid = figure.add_gridspec(
            rows + 1, columns + 1, width_ratios=[0.62, *[1.35] * columns],
            height_ratios=[*[_ROW] * rows, _LINE * max(lines, 0.1)],
        )  # fmt: skip
        for row, given in enumerate(inputs):
            _picture(figure.add_subplot(grid[row, 0]), given)
            for column, model in enumerate(models):
                axes = figure.add_subplot(grid[row, column + 1])
                _panel(axes, all_p[row][column], given, top, size).set_in_layout(False)
                if row == 0:
                    axes.set_title(
                        "\n".join(shorten(line, letters) for line in model.label.split("\n")),
                        fontsize=size + 1,
                    )
                axes.tick_params(labelleft=column == 0, labelbottom=row == rows - 1)
        for column in range(columns):
            _lines(figure.add_subplot(grid[rows, column + 1]), below[column], size)
        figure.legend(
            handles=_key(), loc="outside upper left", ncols=4 if across > 5 else 2, frameon=False,
            fontsize=6.5, handlelength=1.4, columnspacing=1.2,
        )  # fmt: skip
        write_caption(figure, caption)
        return figure


def entropy(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Entropy in nats along the last dimension."""
    p = np.asarray(probabilities, dtype=float)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)


def _checked(model: SoftmaxModel, row: int) -> NDArray[np.float64]:
    p = np.asarray(model.probabilities[row], dtype=float)
    if p.ndim != 1 or not len(p) or not p.min() >= 0 or abs(p.sum() - 1) > 1e-3:
        raise UserError(f"probabilities: row {row} of {model.label!r} is no distribution.")
    return p


def _picture(axes: Axes, given: SoftmaxInput) -> None:
    axes.imshow(np.asarray(given.pixels).transpose(1, 2, 0), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_ylabel(given.label, fontsize=6.5, labelpad=2)


def _panel(
    axes: Axes, p: NDArray[np.float64], given: SoftmaxInput, top: float, size: float
) -> Text:
    """Draw the bars; gives the text above them."""
    order = np.argsort(-p, kind="stable")
    for rank, index in enumerate(order[:BARS], start=1):
        axes.bar(rank, p[index], width=0.72, linewidth=0.8, **_bar(int(index), given))
    for place, index in zip(_APART, (given.first, given.second), strict=True):
        axes.bar(place, p[index], width=0.72, linewidth=0.8, **_bar(index, given))
    axes.axhline(1 / len(p), color=soft_ink(), linewidth=0.7, linestyle=(0, (1, 2)))
    axes.set(ylim=(0, 1.48 * top), xlim=(0.4, _APART[1] + 0.6))
    axes.set_xticks([1, BARS, *_APART], ["1", str(BARS), "A", "B"])
    axes.locator_params(axis="y", nbins=3)
    axes.tick_params(labelsize=size - 0.5, length=2, pad=1.5)
    ranks = [int((order == index).argmax()) + 1 for index in (given.first, given.second)]
    return axes.text(
        0.99, 1.0,
        f"H {entropy(p):.2f}  max {p.max():.2g}\nranks: A {ranks[0]:,}, B {ranks[1]:,}",
        transform=axes.transAxes, ha="right", va="top", fontsize=size - 0.3, color=soft_ink(),
        linespacing=1.15,
    )  # fmt: skip


def _bar(index: int, given: SoftmaxInput) -> dict[str, Any]:
    if index == given.first:
        return {"facecolor": _FIRST, "edgecolor": _FIRST}
    if index == given.second:
        paper = rcParams["figure.facecolor"]
        return {"facecolor": paper, "edgecolor": _SECOND, "hatch": "//////"}
    return {"facecolor": _OTHER, "edgecolor": _OTHER}


def _lines(axes: Axes, lines: Sequence[str], size: float) -> None:
    axes.set_axis_off()
    axes.text(
        0.0, 1.0, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=size,
        linespacing=1.3,
    ).set_in_layout(False)  # fmt: skip


def _wrapped(lines: Sequence[str], letters: int) -> list[str]:
    """Lines of at most so many letters; what goes on is indented."""
    return [part for line in lines for part in wrap(line, letters, subsequent_indent="   ")]


def _key() -> list[Patch | Line2D]:
    paper = rcParams["figure.facecolor"]
    return [
        Patch(facecolor=_FIRST, edgecolor=_FIRST, label="image A"),
        Patch(facecolor=paper, edgecolor=_SECOND, hatch="//////", label="image B"),
        Patch(facecolor=_OTHER, edgecolor=_OTHER, label="another image"),
        Line2D([], [], color=soft_ink(), linewidth=0.8, linestyle=(0, (1, 2)), label="uniform"),
    ]
