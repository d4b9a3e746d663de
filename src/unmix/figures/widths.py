"""Widths of figures on paper, and the caption below them."""

from __future__ import annotations

from textwrap import fill

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from unmix.errors import check_choice, check_number
from unmix.figures.style import soft_ink

__all__ = ["WIDTHS", "inches", "write_caption"]

WIDTHS = {"column": 3.35, "page": 6.9}
"""Widths of a column and of the text of a page, in inches, as of most conference papers."""

_POINTS, _SPACING = 6.5, 1.25


def inches(width: str | float) -> float:
    """A width in inches.

    Args:
        width: "column", "page", or inches, at least 2.

    Raises:
        UserError: if it is none of these.
    """
    if isinstance(width, str):
        return WIDTHS[check_choice("width", width, WIDTHS)]
    check_number("width", width, at_least=2)
    return float(width)


def write_caption(figure: Figure, text: str, left: float = 0.06) -> None:
    """Make a figure taller, and write a caption into the place below.

    Args:
        figure: The figure, of its final width. What is placed by hand must be placed afterwards.
        text: The caption; empty for none.
        left: Distance from the left edge, in inches.
    """
    if not text:
        return
    across = figure.get_figwidth()
    lines = fill(text, int((across - 2 * left) * 72 / (0.54 * _POINTS)))
    below = ((lines.count("\n") + 1) * _POINTS * _SPACING + 8) / 72
    height = figure.get_figheight() + below
    figure.set_figheight(height)
    if isinstance(engine := figure.get_layout_engine(), ConstrainedLayoutEngine):
        engine.set(rect=(0, below / height, 1, 1 - below / height))
    figure.text(
        left / across, 0.04 / height, lines, va="bottom", fontsize=_POINTS, color=soft_ink(),
        linespacing=_SPACING,
    )  # fmt: skip
