"""How the conditions of a figure are drawn: color, dash and marker, distinct without color too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib import rcParams

from unmix.figures.colors import PALETTE, color_of, distinct_colors

__all__ = ["Look", "looks_of"]

Dash = tuple[float, tuple[float, ...]] | str

_BASELINE: Dash = ":"
_DASHES: tuple[Dash, ...] = (
    "-",
    (0, (5, 1.6)),
    (0, (5, 1.4, 1.2, 1.4)),
    (0, (9, 2)),
    (0, (8, 1.5, 1.2, 1.5, 1.2, 1.5)),
    (0, (2.6, 1.2)),
    (0, (3, 1.2, 3, 3)),
)
# Each with its size relative to a circle that looks as large.
_MARKERS = {
    "o": 1.0, "D": 0.85, "s": 0.92, "^": 1.1, "v": 1.1, "P": 1.15, "X": 1.1, "p": 1.15, "<": 1.1,
    "*": 1.5, ">": 1.1, "h": 1.1, "d": 1.15, "8": 1.05,
}  # fmt: skip
_FEW, _MANY = 15, 25


@dataclass(frozen=True)
class Look:
    """How one condition is drawn, in every figure of a page.

    Attributes:
        color: As `#RRGGBB`, legible on white and on a dark page.
        dash: Line style of Matplotlib.
        marker: Marker of Matplotlib.
        hollow: Whether the marker is filled with the color of the page.
    """

    color: str
    dash: Dash
    marker: str
    hollow: bool = False

    def plot(self, points: int) -> dict[str, Any]:
        """Keywords of `Axes.plot` for a line; of many points only some have a marker.

        Args:
            points: Number of points of the line.
        """
        every = max(1, round(points / _MANY * 2)) if points > _MANY else 1
        return {
            "color": self.color,
            "linestyle": self.dash,
            "markevery": every,
            **self.dots(5 if points <= _FEW else 4),
        }

    def dots(self, size: float = 5) -> dict[str, Any]:
        """Keywords of `Axes.plot` for the markers alone."""
        return {
            "marker": self.marker,
            "markersize": size * _MARKERS.get(self.marker, 1.0),
            "markeredgecolor": self.color,
            "markerfacecolor": rcParams["axes.facecolor"] if self.hollow else self.color,
            "markeredgewidth": 1.2 if self.hollow else 0.8,
        }


def looks_of(conditions: Mapping[str, tuple[str, str]]) -> dict[str, Look]:
    """A look for each condition, such that no two are alike, in color or in black and white.

    With several methods of a condition or two, each has its color, as in papers; with more, every
    condition has another color as long as there are enough. Within a method, dashes differ: the
    first condition without a mixture is dotted.
    Conditions without a mixture have hollow markers, and no two conditions have the same marker.

    Args:
        conditions: For each name, the method and the mixture ("none" for a baseline).
    """
    by_method: dict[str, list[str]] = {}
    for name, (method, _) in conditions.items():
        by_method.setdefault(method, []).append(name)
    most = max(map(len, by_method.values()), default=0)
    each = len(conditions) <= len(PALETTE) and most > (1 if len(by_method) == 1 else 2)
    each = each or len(by_method) == 1 < most
    colors = _colors_of_each(conditions)
    hues = dict(zip(by_method, distinct_colors([color_of(m) for m in by_method]), strict=True))
    looks: dict[str, Look] = {}
    for method, names in by_method.items():
        plain = next((name for name in names if conditions[name][1] == "none"), None)
        others = [name for name in names if name != plain]
        dashes = {name: _DASHES[at % len(_DASHES)] for at, name in enumerate(others)}
        for name in names:
            marker, hollow = _marker(conditions[name][1] == "none", looks.values())
            color = colors[name] if each else hues[method]
            looks[name] = Look(color, dashes.get(name, _BASELINE), marker, hollow)
    return {name: looks[name] for name in conditions}


def _colors_of_each(conditions: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """A color for each condition; gray is the first one without a mixture."""
    plain = next((name for name, (_, mixture) in conditions.items() if mixture == "none"), None)
    rest = PALETTE[1:]
    others = [name for name in conditions if name != plain]
    found = {name: rest[at % len(rest)] for at, name in enumerate(others)}
    return found if plain is None else {plain: PALETTE[0], **found}


def _marker(hollow: bool, taken: Iterable[Look]) -> tuple[str, bool]:
    """The first marker that none has in this form, or only as the other of filled and hollow."""
    have = [(look.marker, look.hollow) for look in taken]
    shapes = {marker for marker, _ in have}
    order = [(m, hollow) for m in _MARKERS if m not in shapes]
    order += [(m, hollow) for m in _MARKERS if (m, hollow) not in have]
    order += [(m, not hollow) for m in _MARKERS if (m, not hollow) not in have]
    return order[0] if order else (list(_MARKERS)[len(have) % len(_MARKERS)], hollow)
