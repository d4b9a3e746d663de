"""The common style of all figures: font, grid, and colors by method and mixture."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "GRAY",
    "STYLE",
    "End",
    "color_of",
    "label_ends",
    "line_of",
    "marker_of",
    "message",
    "separate_labels",
    "shorten",
]

GRAY = "#666666"

# Any: some versions of Matplotlib type the keys as strings, some as literals.
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.7,
    "xtick.color": "#888888",
    "ytick.color": "#888888",
    "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.facecolor": "white",
    "svg.hashsalt": "unmix",
    # Names of runs are not formulas, even if they contain dollar signs.
    "text.parse_math": False,
    "text.usetex": False,
}

# Dark enough on white, and distinguishable with common color vision deficiencies.
_COLORS: dict[str, str] = {
    "moco": "#CC3311",
    "cmc": "#0077BB",
    "insdis": "#009966",
    "simclr": "#EE7733",
    "byol": "#AA3377",
    "swav": "#33A5CC",
    "simsiam": "#775500",
    "vicreg": "#888800",
    "wmse": "#000000",
    "dino": "#882255",
    "barlow": "#332288",
    "mocov3": "#FF6B6B",
    "nnclr": "#117733",
    "pirl": "#6655BB",
    "deepclusterv2": "#446688",
}
_OTHERS = ("#555555", "#117733", "#6699CC", "#B8860B", "#994455", "#44AA99")

_MARKERS = {"none": "o", "IM": "o", "global": "s", "region": "^", "Un-Mix": "D"}


def _plain(method: str) -> str:
    return re.sub(r"[^a-z0-9]", "", method.lower())


def color_of(method: str) -> str:
    """Return a method's color: MoCo red, CMC blue, InsDis green, others from a fixed list.

    A version of a method (`moco-v2`) has that of the method.
    """
    plain = _plain(method)
    known = _COLORS.get(plain) or _COLORS.get(re.sub(r"v\d+$|\d+$", "", plain))
    return known or _OTHERS[zlib.crc32(plain.encode()) % len(_OTHERS)]


def line_of(mixture: str) -> str:
    """Return the line style: dotted for a baseline, solid for a mixture."""
    return ":" if mixture == "none" else "-"


def marker_of(mixture: str, points: int) -> dict[str, Any]:
    """Return a mixture's marker as keywords of `Axes.plot`.

    Args:
        mixture: Name of the mixture; a baseline's marker is hollow.
        points: Number of points of the line; many get small markers, very many none.
    """
    if points > 60:
        return {"marker": ""}
    fill = {"markerfacecolor": "white"} if mixture == "none" else {}
    size = 5 if points <= 15 else 3
    return {"marker": _MARKERS.get(mixture, "P"), "markersize": size, **fill}


def shorten(text: str, length: int = 34) -> str:
    """Replace the middle of a string longer than `length` characters by an ellipsis."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


@dataclass(frozen=True)
class End:
    """The last point of a line in data units, and its label."""

    x: float
    y: float
    text: str
    color: str


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
    """Write labels to the right of the axes at the height of their lines, without overlap.

    Args:
        axes: The axes; its limits must be final, as the labels do not follow them.
        ends: The last points of the lines.
        size: Font size in points.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    height = axes.get_window_extent().height * 72 / figure.dpi
    low, high = axes.get_ylim()
    wanted = [(end.y - low) / (high - low) for end in ends]
    for end, y in zip(ends, separate_labels(wanted, 1.3 * size / height, 0.0, 1.0), strict=True):
        axes.annotate(
            shorten(end.text),
            xy=(end.x, end.y),
            xytext=(1.035, y),
            textcoords="axes fraction",
            color=end.color,
            fontsize=size,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": end.color,
                "alpha": 0.45,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 4,
            },
            annotation_clip=False,
        )


def message(axes: Axes, text: str) -> None:
    """Write a sentence into axes without data."""
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, text, ha="center", va="center", color=GRAY, transform=axes.transAxes, wrap=True
    )
