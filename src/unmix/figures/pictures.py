"""Grids of pictures: nearest neighbors of images; views and their mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from unmix.errors import UserError
from unmix.figures.style import shorten, style
from unmix.figures.widths import inches, write_caption

__all__ = ["Picture", "PictureRow", "picture_grid"]

_SAME, _OTHER = "#30A854", "#CC3311"
_BOXES = ("#CC3311", "#0077BB", "#E06C20", "#30A854")
# In inches: the largest picture, the place of labels, and gaps.
_LARGEST, _LEFT, _GAP, _APART, _EDGE = 1.1, 0.26, 0.16, 0.09, 0.03


@dataclass(frozen=True)
class Picture:
    """A picture of a grid.

    Attributes:
        pixels: uint8 (3, H, W).
        note: Short lines below it.
        agrees: Whether it is of the same class as the first picture of the row: framed by a solid
            line, or by a dashed one; None for no frame.
        boxes: Outlined: top, left, bottom, right in pixels, the last two exclusive.
    """

    pixels: ArrayLike
    note: str = ""
    agrees: bool | None = None
    boxes: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class PictureRow:
    """A row of a grid.

    Attributes:
        label: At its left.
        pictures: From left to right; None leaves a cell empty.
        apart: Whether there is a gap above it.
    """

    label: str
    pictures: Sequence[Picture | None]
    apart: bool = False

    @property
    def lines(self) -> int:
        """How many lines of notes it has."""
        notes = [picture.note for picture in self.pictures if picture is not None]
        return max((note.count("\n") + 1 for note in notes if note), default=0)


def picture_grid(
    rows: Sequence[PictureRow],
    *,
    first_apart: bool = False,
    title: str = "",
    caption: str = "",
    width: str | float = "page",
    theme: str = "light",
) -> Figure:
    """Draw rows of pictures with labels, notes, frames and boxes.

    Args:
        rows: The rows.
        first_apart: Whether there is a gap behind the first picture of each row.
        title: Text above.
        caption: Text below.
        width: "column", "page", or inches.
        theme: light, dark or inline.

    Raises:
        UserError: if there is no picture.
    """
    columns = max((len(row.pictures) for row in rows), default=0)
    if not columns:
        raise UserError("picture_grid: give at least one picture.")
    across = inches(width)
    left = _LEFT if any(row.label for row in rows) else _EDGE
    gap = _GAP if first_apart else 0.0
    cell = min(_LARGEST, (across - left - gap - _EDGE) / columns)
    size = float(np.clip(8.5 * cell, 4.0, 6.5))
    line = 1.25 * size / 72
    steps = [cell + row.lines * line + _EDGE + _APART * row.apart for row in rows]
    above = 0.24 if title else 0.02
    with rc_context({**style(theme), "axes.grid": False}):
        figure = Figure(figsize=(across, above + sum(steps)))
        write_caption(figure, caption)
        height = figure.get_figheight()
        top = height - above
        for row, step in zip(rows, steps, strict=True):
            start = top - _APART * row.apart
            if row.label:
                figure.text(
                    0.05 / across, (start - cell / 2) / height,
                    _in_two_lines(row.label, max(7, int(step * 17))), rotation=90,
                    va="center", fontsize=6 if step > 0.6 else 5, linespacing=1.0,
                )  # fmt: skip
            for column, picture in enumerate(row.pictures):
                if picture is None:
                    continue
                x = left + column * cell + (gap if column else 0)
                side = cell - 2 * _EDGE
                place = ((x + _EDGE) / across, (start - cell + _EDGE) / height,
                         side / across, side / height)  # fmt: skip
                _draw(figure.add_axes(place), picture, size)
            top -= step
        if title:
            figure.text((left + _EDGE) / across, 1 - 0.05 / height, title, va="top", fontsize=8.5)
        return figure


def _in_two_lines(label: str, letters: int) -> str:
    lines = wrap(shorten(label, 2 * letters), letters, break_on_hyphens=False)
    return "\n".join([lines[0], shorten(" ".join(lines[1:]), letters)] if lines[1:] else lines)


def _draw(axes: Axes, picture: Picture, size: float) -> None:
    axes.imshow(np.asarray(picture.pixels).transpose(1, 2, 0), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if picture.note:
        axes.annotate(
            picture.note, (0.5, 0), xycoords="axes fraction", xytext=(0, -1.5),
            textcoords="offset points", ha="center", va="top", fontsize=size, linespacing=1.15,
        )  # fmt: skip
    if picture.agrees is not None:
        frame = Rectangle(
            (0, 0), 1, 1, transform=axes.transAxes, fill=False, clip_on=False, linewidth=1.5,
            edgecolor=_SAME if picture.agrees else _OTHER,
            linestyle="-" if picture.agrees else (0, (2.2, 1.4)),
        )  # fmt: skip
        axes.add_patch(frame)
    for number, (top, left, bottom, right) in enumerate(picture.boxes):
        if bottom <= top or right <= left:
            continue
        # imshow puts the center of pixel 0 at 0, so its edge is at -0.5.
        corner = (left - 0.5, top - 0.5)
        for color, line in (("white", 2.2), (_BOXES[number % len(_BOXES)], 1.1)):
            axes.add_patch(
                Rectangle(
                    corner, right - left, bottom - top, fill=False, edgecolor=color,
                    linewidth=line, clip_on=False,
                )
            )  # fmt: skip
