"""Features in two dimensions, by class (Figure 4 of Un-Mix)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray

from unmix.errors import UserError
from unmix.figures.colors import PALETTE
from unmix.figures.style import legend_columns, shorten, style, titled
from unmix.figures.widths import inches, write_caption

__all__ = ["embedding"]

_MARKERS = ("o", "^", "s", "D", "v", "P", "X")
_MOST_NAMED, _MOST_LISTED = 20, 30


def embedding(
    panels: Mapping[str, ArrayLike],
    labels: ArrayLike | None = None,
    classes: Sequence[str] = (),
    *,
    caption: str = "",
    width: str | float = "page",
    theme: str = "light",
) -> Figure:
    """Draw points in the plane for each model, colored by class.

    Up to 56 classes have a color and marker of their own; up to 20 are named in place, up to 30
    below. The axes of t-SNE and UMAP have no unit, so none are drawn.
    (Shen et al. 2022, Un-Mix, Figure 4.)

    Args:
        panels: For each model's name, points (N, 2); the images are the same for all.
        labels: Their classes, int (N,); None without classes.
        classes: Names of the classes.
        caption: Text below.
        width: "column", "page", or inches.
        theme: light, dark or inline.

    Raises:
        UserError: if there is no model, or points and labels do not match.
    """
    points = {name: np.asarray(values, dtype=float) for name, values in panels.items()}
    ids = None if labels is None else np.asarray(labels)
    _check(points, ids)
    across = inches(width)
    columns = min(len(points), 1 if across < 5 else 3)
    rows = -(-len(points) // columns)
    used = [] if ids is None else sorted({int(i) for i in ids})
    listed = used if len(used) <= _MOST_LISTED else []
    side = min(across / columns, 4.2) - 0.06
    words = [name_of(i, classes) for i in listed]
    per_row = legend_columns(words, across, 6.5, 2.9)
    below = 0.14 * -(-len(listed) // per_row) + 0.35
    with rc_context({**style(theme), "axes.grid": False}):
        titles = [titled(name, side) for name in points]
        higher = 0.16 * max(title.count("\n") for title in titles)
        figure = Figure(figsize=(across, rows * (side + higher) + below), layout="constrained")
        cells = figure.subplots(rows, columns, squeeze=False).flat
        for axes, values, title in zip(cells, points.values(), titles, strict=False):
            _draw(axes, values, ids, used, classes)
            axes.set_title(title)
        for axes in list(figure.axes)[len(points) :]:
            axes.set_axis_off()
        if listed:
            handles = [_handle(place, word) for place, word in enumerate(words)]
            figure.legend(
                handles=handles, loc="outside upper left", ncols=per_row, frameon=False,
                fontsize=6.5, handletextpad=0.1, columnspacing=0.8, labelspacing=0.25,
            )  # fmt: skip
        write_caption(figure, caption)
        return figure


def name_of(index: int, classes: Sequence[str], length: int = 18) -> str:
    """The name of a class, or its number."""
    return shorten(classes[index], length) if index < len(classes) else str(index)


def _check(points: Mapping[str, NDArray[np.float64]], ids: NDArray[np.int64] | None) -> None:
    if not points:
        raise UserError("embedding: give the points of at least one model.")
    counts = {len(values) for values in points.values()} | (
        {len(ids)} if ids is not None else set()
    )
    shapes = {values.shape[1:] for values in points.values()}
    if len(counts) != 1 or shapes != {(2,)}:
        raise UserError(
            "embedding: points must be (N, 2) and labels (N,), of the same N for all models."
        )


def _look(place: int) -> tuple[str, str]:
    """Color and marker of a class; the pairs repeat after 56."""
    colors = (*PALETTE[1:], PALETTE[0])
    return colors[place % len(colors)], _MARKERS[place % len(_MARKERS)]


def _handle(place: int, name: str) -> Line2D:
    color, marker = _look(place)
    return Line2D([], [], linestyle="", marker=marker, color=color, markersize=4, label=name)


def _draw(
    axes: Axes,
    values: NDArray[np.float64],
    ids: NDArray[np.int64] | None,
    used: Sequence[int],
    classes: Sequence[str],
) -> None:
    size = float(np.clip(2500 / len(values), 2.5, 16))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.set_box_aspect(1)
    axes.margins(0.04)
    if ids is None:
        axes.scatter(values[:, 0], values[:, 1], s=size, color=PALETTE[2], linewidths=0)
        return
    for place, index in enumerate(used):
        color, marker = _look(place)
        own = values[ids == index]
        axes.scatter(
            own[:, 0], own[:, 1], s=size, color=color, marker=marker, linewidths=0, alpha=0.85
        )
    if len(used) > _MOST_NAMED:
        return
    _name(axes, {name_of(i, classes): _middle(values[ids == i]) for i in used})


def _name(axes: Axes, places: Mapping[str, NDArray[np.float64]]) -> None:
    """Write names at places, moved up or down where they would overlap."""
    axes.autoscale_view()
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    axes.set(xlim=(left, right), ylim=(low, high))
    halo = [withStroke(linewidth=1.8, foreground=rcParams["figure.facecolor"], alpha=0.85)]
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    side = 72 * (figure.get_figwidth() / axes.get_gridspec().ncols - 0.1)  # type: ignore[union-attr]
    taken: list[tuple[float, float, float]] = []
    for name, (x, y) in sorted(places.items(), key=lambda item: -item[1][1]):
        half, step = 0.5 * 0.56 * 6.5 * len(name) / side, 1.1 * 6.5 / side
        across = float(np.clip((x - left) / (right - left), half, 1 - half))
        wanted = (y - low) / (high - low)
        for shift in (0, -1, 1, -2, 2, -3, 3):
            up = wanted + shift * step
            if all(
                abs(up - other) >= 0.95 * step or abs(across - at) >= half + wide
                for at, other, wide in taken
            ):
                break
        taken.append((across, up, half))
        axes.text(
            across, up, name, transform=axes.transAxes, fontsize=6.5, ha="center", va="center",
            path_effects=halo, zorder=5,
        )  # fmt: skip


def _middle(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The point of a class with the smallest sum of distances to the others."""
    some = points[:: max(1, len(points) // 500)]
    distances = np.linalg.norm(some[:, None] - some[None], axis=2).sum(axis=1)
    return some[int(distances.argmin())]
