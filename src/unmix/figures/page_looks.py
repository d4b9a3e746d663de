"""How conditions are drawn on a page: the looks of `looks`, in the terms of SVG and the canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from unmix.figures.looks import Look, looks_of
from unmix.figures.report_content import Condition

__all__ = ["PageLook", "page_looks"]

WIDTH = 1.8
"""Of a curve, in pixels; dashes are multiples of it."""

_NAMED = {"-": (), ":": (1.0, 1.65), "--": (3.7, 1.6), "-.": (6.4, 1.6, 1.0, 1.6)}


def _regular(corners: int, turn: float = 0.0, inner: float | None = None) -> list[list[float]]:
    """A polygon in the unit circle, the first corner above; a star with an inner radius."""
    count = corners if inner is None else 2 * corners
    found = []
    for i in range(count):
        radius = inner if inner is not None and i % 2 else 1.0
        angle = 2 * math.pi * i / count + turn
        found.append([round(radius * math.sin(angle), 3), round(-radius * math.cos(angle), 3)])
    return found


def _cross(turn: float) -> list[list[float]]:
    a, cos, sin = 0.36, math.cos(turn), math.sin(turn)
    plain = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a),
             (-1, a), (-1, -a), (-a, -a)]  # fmt: skip
    return [[round(x * cos - y * sin, 3), round(x * sin + y * cos, 3)] for x, y in plain]


# Corners of Matplotlib's markers for a radius of 1; a circle has none.
_MARKERS: dict[str, list[list[float]]] = {
    "o": [],
    "s": [[-0.88, -0.88], [0.88, -0.88], [0.88, 0.88], [-0.88, 0.88]],
    "D": _regular(4),
    "d": [[0, -1.1], [0.66, 0], [0, 1.1], [-0.66, 0]],
    "^": _regular(3),
    "v": _regular(3, math.pi),
    "<": _regular(3, -math.pi / 2),
    ">": _regular(3, math.pi / 2),
    "P": _cross(0),
    "X": _cross(math.pi / 4),
    "p": _regular(5),
    "h": _regular(6),
    "8": _regular(8, math.pi / 8),
    "*": _regular(5, inner=0.42),
}


@dataclass(frozen=True)
class PageLook:
    """A condition's color, dashes and marker.

    Attributes:
        color: As `#RRGGBB`.
        dash: Lengths in pixels, empty for a solid line.
        corners: Of the marker, for a radius of 1; empty for a circle.
        hollow: Whether the marker is filled with the color of the page.
    """

    color: str
    dash: tuple[float, ...]
    corners: list[list[float]]
    hollow: bool

    def as_dict(self) -> dict[str, Any]:
        """As the script reads it."""
        return {
            "color": self.color,
            "dash": list(self.dash),
            "corners": self.corners,
            "hollow": self.hollow,
        }

    @property
    def line(self) -> str:
        """Attributes of an SVG line or path."""
        dash = f' stroke-dasharray="{" ".join(f"{d:g}" for d in self.dash)}"' if self.dash else ""
        return f'fill="none" stroke="{self.color}" stroke-width="{WIDTH:g}"{dash}'

    def marker(self, x: float, y: float, radius: float = 4.2) -> Markup:
        """The marker around a point, as SVG."""
        fill = "var(--paper)" if self.hollow else self.color
        paint = f'fill="{fill}" stroke="{self.color}" stroke-width="1.4"'
        if not self.corners:
            return Markup(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius * 0.86:.1f}" {paint}/>')
        points = " ".join(f"{x + radius * a:.1f},{y + radius * b:.1f}" for a, b in self.corners)
        return Markup(f'<polygon points="{points}" {paint}/>')

    def swatch(self) -> Markup:
        """Line and marker for a legend."""
        line = f'<line x1="1" y1="8" x2="41" y2="8" {self.line}/>'
        return Markup(
            '<svg class="swatch" viewBox="0 0 42 16" aria-hidden="true">'
            f"{line}{self.marker(21, 8, 4.8)}</svg>"
        )


def page_looks(conditions: Sequence[Condition]) -> list[PageLook]:
    """A look for each condition, in their order."""
    looks = looks_of({c.name: (c.method, c.mixture or c.name) for c in conditions})
    return [_look(looks[condition.name]) for condition in conditions]


def _look(look: Look) -> PageLook:
    lengths = _NAMED[look.dash] if isinstance(look.dash, str) else look.dash[1]
    dash = tuple(round(WIDTH * length, 1) for length in lengths)
    return PageLook(look.color, dash, _MARKERS.get(look.marker, []), look.hollow)
