"""Curves of a page: means and bands over seeds, as JSON for the script and as SVG without one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from unmix.display import mean_and_std, number
from unmix.figures.page_looks import PageLook
from unmix.figures.report_content import Condition, CurveSet
from unmix.names import shown

__all__ = ["Chart", "Line", "chart_of", "entries", "limits", "ticks"]

_MOST = 400
"""Points of a curve."""

_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 300, 56, 14, 12, 42
_UNITS = ((172_800, 3600, "hours"), (300, 60, "minutes"), (0, 1, "seconds"))


@dataclass(frozen=True)
class Line:
    """The mean of a condition over its seeds.

    Attributes:
        index: Of the condition.
        epochs: Where it was measured.
        seconds: The mean over its seeds, at these epochs; None where none is known.
        mean: None where no seed has a finite value.
        spread: Standard deviation (n - 1) over the seeds; 0 for one.
        seeds: How many have a finite value.
        every: Only every such epoch is kept.
    """

    index: int
    epochs: list[float]
    seconds: list[float | None]
    mean: list[float | None]
    spread: list[float]
    seeds: list[int]
    every: int = 1


@dataclass(frozen=True)
class Chart:
    """A `CurveSet` that is ready to be drawn."""

    title: str
    label: str
    caption: str
    lines: list[Line]
    references: dict[str, float]

    @property
    def timed(self) -> bool:
        """Whether it can be drawn against time."""
        return bool(self.lines) and all(any(line.seconds) for line in self.lines)

    @property
    def unit(self) -> tuple[int, str]:
        """Seconds of the unit of time that suits it, and the unit's name."""
        last = max((s for line in self.lines for s in line.seconds if s is not None), default=0.0)
        return next((size, name) for least, size, name in _UNITS if last >= least)

    def as_dict(self) -> dict[str, Any]:
        """As the script reads it."""
        size, name = self.unit
        return {
            "label": self.label,
            "percent": "%" in self.label,
            "time": name if self.timed else None,
            "references": [[key, value] for key, value in self.references.items()],
            "lines": [
                {
                    "c": line.index,
                    "x": line.epochs,
                    "t": _scaled(line.seconds, size) if self.timed else None,
                    "y": [None if y is None else _digits(y) for y in line.mean],
                    "d": [_digits(d) for d in line.spread],
                    "n": line.seeds,
                }
                for line in self.lines
            ],
        }

    def value_text(self, mean: float | None, spread: float) -> str:
        """Such as `70.1 ± 0.4`."""
        if mean is None:
            return "–"
        if "%" in self.label:
            return f"{mean:.1f}" + (f" ± {spread:.1f}" if spread else "")
        return mean_and_std(mean, spread) if spread else number(mean)

    def svg(self, looks: Sequence[PageLook], *, time: bool = False) -> Markup:
        """The chart without a script, in the colors of the page."""
        size, unit = self.unit if time else (1, "epochs")
        curves = [(line, _points(line, size, time)) for line in self.lines]
        xs = [x for _, points in curves for x, *_ in points]
        ys = [*self.references.values()]
        ys += [y + sign * d for _, points in curves for _, y, d in points for sign in (-1, 1)]
        if not xs:
            return Markup('<p class="soft">No value of these runs is finite.</p>')
        low, high = limits(ys, percent="%" in self.label)
        frame = _Frame(0 if time else min(xs), max(xs), low, high)
        title = f"{self.label} against {unit if time else 'epochs'}"
        parts = [
            Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_W, _H, title),
            frame.axes(f"time in {unit}" if time else "epochs"),
        ]
        parts += [frame.level("reference", value) for value in self.references.values()]
        for line, points in curves:
            parts.append(_drawn(points, looks[line.index], frame))
        return Markup("").join([*parts, Markup("</svg>")])


@dataclass(frozen=True)
class _Frame:
    """From values to places."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        across = (value - self.x0) / ((self.x1 - self.x0) or 1)
        return round(_LEFT + across * (_W - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        up = (value - self.y0) / ((self.y1 - self.y0) or 1)
        return round(_H - _BOTTOM - up * (_H - _TOP - _BOTTOM), 1)

    def level(self, kind: str, value: float) -> Markup:
        y = self.y(value)
        return Markup(f'<line class="{kind}" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y}" y2="{y}"/>')

    def axes(self, label: str) -> Markup:
        base, middle = _H - _BOTTOM, (_W + _LEFT) / 2
        parts = [
            self.level("grid", value) + _text(_LEFT - 6, self.y(value) + 4, f"{value:g}", "end")
            for value in ticks(self.y0, self.y1)
        ]
        parts += [
            _text(self.x(value), base + 16, f"{value:g}") for value in ticks(self.x0, self.x1)
        ]
        parts += [self.level("axis", self.y0), _text(middle, _H - 8, label)]
        return Markup("").join(parts)


def _text(x: float, y: float, words: str, anchor: str = "middle") -> Markup:
    return Markup('<text x="{:g}" y="{:g}" text-anchor="{}">{}</text>').format(x, y, anchor, words)


def _points(line: Line, size: int, time: bool) -> list[tuple[float, float, float]]:
    xs = _scaled(line.seconds, size) if time else line.epochs
    return [
        (x, y, d)
        for x, y, d in zip(xs, line.mean, line.spread, strict=True)
        if x is not None and y is not None
    ]


def _scaled(seconds: Sequence[float | None], size: int) -> list[float | None]:
    return [None if s is None else _digits(s / size) for s in seconds]


def _drawn(points: Sequence[tuple[float, float, float]], look: PageLook, frame: _Frame) -> Markup:
    """A band, a line and some markers."""
    parts = []
    if len(points) > 1 and any(d for *_, d in points):
        upper = [f"{frame.x(x)},{frame.y(y + d)}" for x, y, d in points]
        lower = [f"{frame.x(x)},{frame.y(y - d)}" for x, y, d in reversed(points)]
        band = " ".join([*upper, *lower])
        parts.append(f'<polygon points="{band}" fill="{look.color}" fill-opacity="0.14"/>')
    path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y, _ in points)
    parts.append(f'<polyline points="{path}" {look.line}/>')
    every = max(1, math.ceil(len(points) / 12))
    parts += [look.marker(frame.x(x), frame.y(y)) for x, y, _ in points[::-1][::every]]
    return Markup("".join(parts))


def chart_of(curves: CurveSet, conditions: Sequence[Condition]) -> Chart:
    """Average the curves of each condition over its seeds; points of long curves are thinned."""
    lines = []
    for index, condition in enumerate(conditions):
        own = [curve for curve in curves.curves if curve.condition == condition.name]
        values: dict[float, list[float]] = {}
        times: dict[float, list[float | None]] = {}
        for curve in own:
            seconds = curve.seconds or [None] * len(curve.epochs)
            for epoch, value, second in zip(curve.epochs, curve.values, seconds, strict=True):
                values.setdefault(epoch, []).extend(_finite(value))
                times.setdefault(epoch, []).append(next(iter(_finite(second)), None))
        if any(values.values()):
            lines.append(_line(index, dict(sorted(values.items())), times))
    caption = shown(curves.caption)
    every = max((line.every for line in lines), default=1)
    if any(max(line.seeds) > 1 for line in lines):
        caption += " Bands: standard deviation over seeds."
    if every > 1:
        caption += f" Of long curves at least one of {every} points is drawn."
    references = {shown(k): v for k, v in curves.references.items() if math.isfinite(v)}
    return Chart(shown(curves.title), shown(curves.label), caption.strip(), lines, references)


def _line(
    index: int,
    values: Mapping[float, Sequence[float]],
    times: Mapping[float, Sequence[float | None]],
) -> Line:
    every = math.ceil(len(values) / _MOST)
    # Counted from the last one, which everybody looks at.
    epochs = list(values)[::-1][::every][::-1]
    known = [[s for s in times[epoch] if s is not None] for epoch in epochs]
    found = [values[epoch] for epoch in epochs]
    return Line(
        index,
        epochs,
        [statistics.fmean(own) if own else None for own in known],
        [statistics.fmean(v) if v else None for v in found],
        [statistics.stdev(v) if len(v) > 1 else 0.0 for v in found],
        [len(v) for v in found],
        every,
    )


def _part(line: Line) -> str:
    """How many seeds came as far as the end of a line, if not all did."""
    known, most = line.seeds[-1], max(line.seeds)
    return f" ({known} of {most} seeds)" if 0 < known < most else ""


def _finite(value: float | None) -> list[float]:
    return [value] if value is not None and math.isfinite(value) else []


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


def limits(values: Sequence[float], *, percent: bool) -> tuple[float, float]:
    """Of an axis: differences far below the variation between seeds must not fill it."""
    low, high = min(values), max(values)
    spare = 0.06 * (high - low)
    least = 2.0 if percent else 0.02 * max(abs(low), abs(high), 1e-9)
    spare += max(0.0, least - (high - low)) / 2
    return low - spare, high + spare


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [float(f"{(first + i) * step:.10g}") for i in range(count)]


def entries(chart: Chart, conditions: Sequence[Condition], looks: Sequence[PageLook]) -> list[Any]:
    """The legend of a chart, with each last value."""
    return [
        {
            "index": line.index,
            "swatch": looks[line.index].swatch(),
            "name": shown(conditions[line.index].name),
            "last": chart.value_text(line.mean[-1], line.spread[-1]) + _part(line),
        }
        for line in chart.lines
    ] + [
        {
            "index": "",
            "swatch": Markup(
                '<svg class="swatch" viewBox="0 0 42 16" aria-hidden="true"><line x1="1" y1="8" '
                'x2="41" y2="8" stroke="var(--soft)" stroke-dasharray="6 3"/></svg>'
            ),
            "name": escape(name),
            "last": chart.value_text(value, 0.0),
        }
        for name, value in chart.references.items()
    ]
