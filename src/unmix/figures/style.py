"""The common style of all figures: font, grid, themes, names, and the key beside the axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.lines import Line2D
from matplotlib.transforms import Affine2D, ScaledTranslation, blended_transform_factory

from unmix.display import text_width
from unmix.errors import check_choice
from unmix.figures.colors import color_of
from unmix.figures.looks import Look
from unmix.names import shown

__all__ = [
    "GRAY",
    "IN_PAGE",
    "STYLE",
    "THEMES",
    "End",
    "color_of",
    "fit_label",
    "label_ends",
    "legend_columns",
    "message",
    "separate_labels",
    "shorten",
    "soft_ink",
    "style",
    "titled",
]

# A line that ends right of this share of the axes' width is joined to its entry of the key.
_AT_EDGE = 0.93

# Inches below which a key beside the axes would leave no room for them; a letter over its size.
_NARROW, _LETTER = 5.0, 0.56

GRAY = "#666666"

# For letters that Matplotlib's own font lacks, as in names of classes: those that are installed.
_FURTHER = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC",
    "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "PingFang SC", "Hiragino Sans", "Hiragino Sans GB",
    "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Meiryo", "Malgun Gothic",
    "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Nirmala UI",
    "Arial Unicode MS",
)  # fmt: skip

_BASE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.hashsalt": "unmix",
    # Names of runs are not formulas, even if they contain dollar signs.
    "text.parse_math": False,
    "text.usetex": False,
}

# Ink, softer ink, axes, grid, paper. In a page of its own colors they are put in afterwards.
_THEMES = {
    "light": ("#222222", "#666666", "#888888", "#DDDDDD", "#FFFFFF"),
    "dark": ("#ECECF0", "#A5A5AD", "#7A7A82", "#33363B", "#17171A"),
    "inline": ("#123456", "#808084", "#808085", "#808086", "#FEDCBA"),
}
THEMES = tuple(_THEMES)
"""Of a figure: for a light page, a dark one, or as part of a page, in its colors."""

IN_PAGE = {
    "#123456": "currentColor",
    "#808084": "var(--soft,#75757C)",
    "#fedcba": "var(--paper,Canvas)",
}
"""What the colors of an inline figure are in the page around it."""


# Any: some versions of Matplotlib type the keys as strings, some as literals.
def style(theme: str = "light") -> Any:
    """Matplotlib's settings for a figure: `with rc_context(style("dark")):`.

    Args:
        theme: light, dark or inline.

    Raises:
        UserError: if there is no such theme.
    """
    ink, soft, edge, grid, paper = _THEMES[check_choice("theme", theme, THEMES)]
    there = {font.name for font in fontManager.ttflist}
    return {
        **_BASE,
        "font.family": ["DejaVu Sans", *(name for name in _FURTHER if name in there)],
        "text.color": ink,
        "axes.edgecolor": edge,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "xtick.color": edge,
        "ytick.color": edge,
        "xtick.labelcolor": soft,
        "ytick.labelcolor": soft,
        "grid.color": grid,
        "grid.alpha": 0.35 if theme == "inline" else 1.0,
        "figure.facecolor": paper,
        "axes.facecolor": paper,
    }


STYLE = style()


def soft_ink() -> str:
    """Color of notes and of tick labels, in the style of now."""
    return str(rcParams["xtick.labelcolor"])


def shorten(text: str, length: int = 34) -> str:
    """A name as one visible line, its middle replaced by an ellipsis beyond `length` characters."""
    text = shown(text)
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def titled(text: str, across: float) -> str:
    """A name as the title of axes that are so many inches wide, in one line or two."""
    letters = int(72 * across / (_LETTER * rcParams["axes.titlesize"]))
    return "\n".join(wrap(shorten(text, 2 * letters - 6), letters))


def legend_columns(names: Sequence[str], across: float, size: float, sample: float) -> int:
    """How many columns of names with samples fit into so many inches.

    Args:
        names: The entries of a legend.
        across: The inches.
        size: Font size in points.
        sample: What an entry takes beside its name, in font sizes.
    """
    longest = max(map(text_width, names), default=0)
    return max(1, int(72 * across / (size * (_LETTER * longest + sample))))


@dataclass(frozen=True)
class End:
    """The last point of a line in data units, its name, and how it is drawn; no look: no sample."""

    x: float
    y: float
    text: str
    look: Look | None = None


def separate_labels(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart as little as needed (least squares), keeping their order.

    Args:
        positions: Preferred positions of the labels.
        gap: Minimum distance between two; reduced if they do not fit otherwise.
        low: Lowest position allowed.
        high: Highest position allowed.

    Returns:
        The new positions, in the order of `positions`.
    """
    count = len(positions)
    if count > 1:
        gap = min(gap, (high - low) / (count - 1))
    order = sorted(range(count), key=lambda index: positions[index])
    # With i * gap taken off, "at least gap apart" reads "not decreasing": isotonic regression.
    blocks: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, size = positions[index] - rank * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, number = blocks.pop()
            mean = (before * number + mean * size) / (number + size)
            size += number
        blocks.append((mean, size))
    top = high - max(count - 1, 0) * gap
    steps = [min(max(mean, low), max(top, low)) for mean, size in blocks for _ in range(size)]
    moved = [0.0] * count
    for rank, index in enumerate(order):
        moved[index] = steps[rank] + rank * gap
    return moved


def label_ends(axes: Axes, ends: Sequence[End], size: float = 8) -> None:
    """Write a key to the right of the axes, each entry as near its line's height as possible.

    An entry is a sample of the line and its name, in the color of text. A line that ends at the
    right edge is joined to it; one that ends before is not, as that would look like a flat curve.

    Args:
        axes: The axes; its limits must be final, as the key does not follow them.
        ends: The last points of the lines.
        size: Font size in points.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    if figure.get_figwidth() < _NARROW:
        _key_below(figure, ends, size)
        return
    figure.draw_without_rendering()
    height = axes.get_window_extent().height * 72 / figure.dpi
    (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
    wanted = [(end.y - low) / (high - low) for end in ends]
    places = separate_labels(wanted, 1.45 * size / height, 0.0, 1.0)
    for end, at, y in zip(ends, wanted, places, strict=True):
        offset = 12.0
        if end.look is not None:
            line = {**end.look.plot(1), **end.look.dots(4.5), "markevery": [1]}
            _beside(axes, (offset, offset + 13, offset + 26), (y, y, y), **line)
            offset += 31
        axes.annotate(
            shorten(end.text, 40), xy=(1, y), xycoords="axes fraction", xytext=(offset, 0),
            textcoords="offset points", fontsize=size, va="center", annotation_clip=False,
        )  # fmt: skip
        if (end.x - left) / (right - left) > _AT_EDGE:
            color = soft_ink() if end.look is None else end.look.color
            _beside(axes, (1, 9), (at, y), color=color, linewidth=0.7, alpha=0.6)


def _key_below(figure: Figure, ends: Sequence[End], size: float) -> None:
    """Write the key below the axes, from the highest line down; the figure becomes taller."""
    letters = int((figure.get_figwidth() - 0.7) * 72 / (_LETTER * size))
    handles, lines = [], 0
    for end in sorted(ends, key=lambda end: -end.y):
        how: dict[str, Any] = {"color": soft_ink(), "linestyle": (0, (1, 3)), "linewidth": 0.9}
        if end.look is not None:
            how = {**end.look.plot(1), **end.look.dots(4.5), "markevery": 1}
        label = "\n".join(wrap(shorten(end.text, 3 * letters), letters))
        handles.append(Line2D([0], [0], label=label, **how))
        lines += label.count("\n") + 1
    figure.set_figheight(figure.get_figheight() + 1.45 * lines * size / 72)
    figure.legend(
        handles=handles, loc="outside lower left", frameon=False, fontsize=size, handlelength=3
    )


def fit_label(axes: Axes, text: str) -> None:
    """Write the label of the horizontal axis, in lines that are no longer than the axis.

    Args:
        axes: The axes, with all that takes room beside them.
        text: The label.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    across = axes.get_window_extent().width * 72 / figure.dpi
    letters = int(across / (_LETTER * float(axes.xaxis.label.get_fontsize())))
    axes.set_xlabel("\n".join(wrap(text, max(letters, 16))))


def _beside(axes: Axes, points: Sequence[float], heights: Sequence[float], **how: Any) -> None:
    """Draw a line right of the axes: points from its edge, and fractions of its height."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    inches = Affine2D().scale(1 / 72) + figure.dpi_scale_trans
    at_edge: Any = axes.transAxes
    across = inches + ScaledTranslation(1, 0, at_edge)
    line = Line2D(list(points), list(heights), **how)
    line.set_transform(blended_transform_factory(across, axes.transAxes))
    line.set_in_layout(False)
    figure.add_artist(line)


def message(axes: Axes, text: str) -> None:
    """Write a sentence into axes without data."""
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, text, ha="center", va="center", color=soft_ink(), transform=axes.transAxes,
        wrap=True,
    )  # fmt: skip
