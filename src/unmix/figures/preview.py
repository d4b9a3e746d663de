"""Samples of a mixture: image, partners and result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from unmix.errors import UserError
from unmix.figures.style import soft_ink, style

__all__ = ["mixtures"]

_ACROSS = 8
_CELL = 1.15
_COLORS = ("#CC3311", "#0077BB", "#EE7733", "#009988", "#EE3377", "#AA8800")


def mixtures(
    own: ArrayLike,
    partner: ArrayLike | Sequence[Sequence[ArrayLike]],
    mixed: ArrayLike,
    weights: Sequence[float] | ArrayLike,
    boxes: ArrayLike | Sequence[Sequence[Sequence[int]]] | None = None,
    *,
    captions: Sequence[Sequence[str]] | None = None,
    title: str = "",
    result: str = "mixture",
    theme: str = "light",
) -> Figure:
    """Draw samples as columns: image, partners, mixture with its weight and boxes.

    Args:
        own: uint8 `(N, 3, H, W)`, the images before mixing.
        partner: The same for their partners; or a list of partners per sample, in the order in
            which they are mixed in.
        mixed: The same after mixing.
        weights: `(N,)`, the weight of the image itself in its mixture, in [0, 1].
        boxes: `(N, 4)`, pixels `top, left, bottom, right`, the last two exclusive; or a list
            of boxes per sample. An empty box is not drawn. None if no box was pasted.
        captions: For each sample, a caption per partner, in the color of its box.
        title: A title, such as the settings of the mixture.
        result: Label of the last row.
        theme: light, dark or inline.

    Raises:
        UserError: if the arguments differ in their number of samples, or there is none.
    """
    firsts, lasts = np.asarray(own), np.asarray(mixed)
    shares = np.asarray(weights, dtype=float)
    count = len(shares)
    partners = [_several(each, 3) for each in partner]  # type: ignore[union-attr]
    frames = [[]] * count if boxes is None else [_several(each, 1) for each in boxes]  # type: ignore[union-attr]
    labels = [[""] * len(each) for each in partners] if captions is None else captions
    lengths = [len(firsts), len(partners), len(lasts), count, len(frames)]
    if len(set(lengths)) > 1 or not count:
        raise UserError(
            f"mixtures: own, partner, mixed, weights and boxes have {lengths} samples; "
            "they must have the same number, at least 1."
        )
    with rc_context(style(theme)):
        return _figure(firsts, partners, lasts, shares, frames, labels, title, result)


def _figure(
    firsts: NDArray[Any],
    partners: Sequence[Sequence[NDArray[Any]]],
    lasts: NDArray[Any],
    shares: NDArray[Any],
    frames: Sequence[Any],
    labels: Sequence[Sequence[str]],
    title: str,
    result: str,
) -> Figure:
    count, gray = len(shares), soft_ink()
    most = max(map(len, partners))
    names = ["own image", *(["partner"] if most == 1 else ["partners"] * (most > 0)), result]
    places = [0, 1, most + 1] if most else [0, 1]
    blocks, rows = -(-count // _ACROSS), most + 2
    across = -(-count // blocks)
    named = any(word for each in labels for word in each)
    height = (_CELL * rows + 0.16 * most * named) * blocks
    size = (0.5 + 1.05 * max(across, 3), height + (0.3 if title else 0.0))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(rows * blocks, across)
    for sample in range(count):
        block, column = divmod(sample, across)

        def cell(row: int, picture: Any, top: int = rows * block, column: int = column) -> Axes:
            axes = figure.add_subplot(grid[top + row, column])
            _show(axes, np.asarray(picture))
            if column == 0 and row in places:
                axes.set_ylabel(names[places.index(row)], color=gray)
            return axes

        cell(0, firsts[sample])
        for number, picture in enumerate(partners[sample]):
            color = _color(number) if _is_box(frames[sample], number) else gray
            axes = cell(1 + number, picture)
            axes.set_title(labels[sample][number], fontsize=7, pad=2, color=color)
        axes = cell(most + 1, lasts[sample])
        axes.set_title(f"weight {shares[sample]:.2f}", fontsize=8, pad=3)
        for number, frame in enumerate(frames[sample]):
            _outline(axes, frame, _color(number))
    if title:
        figure.suptitle(title, fontsize=9.5, wrap=True)
    return figure


def _several(value: Any, dimensions: int) -> list[NDArray[Any]]:
    """The pictures or boxes of a sample as a list, even if there is one."""
    if len(value) and np.ndim(value[0]) == dimensions - 1:
        return [np.asarray(value)]
    return [np.asarray(each) for each in value]


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


def _is_box(frames: Sequence[Any], number: int) -> bool:
    if number >= len(frames):
        return False
    top, left, bottom, right = frames[number]
    return bool(bottom > top and right > left)


def _show(axes: Axes, picture: NDArray[Any]) -> None:
    axes.imshow(picture.transpose(1, 2, 0), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _outline(axes: Axes, frame: NDArray[Any], edge_color: str) -> None:
    top, left, bottom, right = (float(edge) for edge in frame)
    if bottom <= top or right <= left:
        return
    # imshow puts the center of pixel 0 at 0, so its edge is at -0.5.
    corner, width, height = (left - 0.5, top - 0.5), right - left, bottom - top
    for color, line in (("white", 2.4), (edge_color, 1.2)):
        axes.add_patch(
            Rectangle(
                corner, width, height, fill=False, edgecolor=color, linewidth=line, clip_on=False
            )
        )
