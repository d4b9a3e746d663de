"""Dots of each seed on a page: places are percentages, so that text keeps its size at any width."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from unmix.figures.page_curves import limits, ticks
from unmix.figures.page_looks import PageLook
from unmix.figures.report_content import Report
from unmix.names import shown

__all__ = ["dots"]

_MIDDLE, _SPREAD = 0.5, 0.27
_FEW = 40
"""Seeds of a condition up to which they are joined, and have markers and titles."""


def dots(report: Report, looks: Sequence[PageLook]) -> list[Markup]:
    """A panel for each protocol: a row for each condition that was measured by it."""
    titles = dict.fromkeys(title for c in report.conditions for title in c.accuracies)
    found = []
    for title in titles:
        rows = {}
        for index, condition in enumerate(report.conditions):
            known = {
                seed: value
                for seed, value in condition.accuracies.get(title, {}).items()
                if math.isfinite(value)
            }
            if known:
                rows[index] = dict(sorted(known.items()))
        if rows:
            found.append(_panel(report, title, rows, looks))
    return found


def _panel(
    report: Report, title: str, rows: Mapping[int, Mapping[int, float]], looks: Sequence[PageLook]
) -> Markup:
    values = [value for by_seed in rows.values() for value in by_seed.values()]
    low, high = limits(values, percent=True)
    near, far = _baselines(report, title, low, high)
    low, high = limits([*values, *near.values()], percent=True)
    scale = _Scale(low, high, len(rows))
    order = {index: row for row, index in enumerate(rows)}
    parts = [_grid(scale, near)]
    parts += [_joins(scale, order, rows, a, b) for a, b in _pairs(report, title, list(rows))]
    cells = []
    for index, by_seed in rows.items():
        parts.append(_row(scale, order[index], by_seed, looks[index]))
        name, at = shown(report.conditions[index].name), order[index] + 2
        cells.append(
            Markup('<div class="name" style="grid-row:{}" title="{}"><span>{}</span></div>').format(
                at, name, name
            )
        )
        cells.append(
            Markup('<div class="mean" style="grid-row:{}">{}</div>').format(
                at, _mean(list(by_seed.values()))
            )
        )
    strip = Markup(
        '<svg class="strip" role="img" aria-label="{}" style="grid-row:2 / span {}">{}</svg>'
    ).format(f"{title} top-1 of each seed, by condition", len(rows), Markup("").join(parts))
    heading = Markup("<h3>{}</h3>").format(f"{shown(title)} top-1 (%)")
    head = Markup('<div class="dots" style="--n:{}">').format(len(rows))
    foot = _below(report, title, {**near, **far}, len(rows))
    return Markup("").join(
        [head, heading, *cells, strip, scale.svg(len(rows) + 2), foot, Markup("</div>")]
    )


class _Scale:
    """From accuracies and rows to percentages."""

    def __init__(self, low: float, high: float, rows: int) -> None:
        self.low, self.high, self.rows = low, high, rows

    def x(self, value: float) -> str:
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}%"

    def y(self, row: float) -> str:
        return f"{100 * row / self.rows:.2f}%"

    def svg(self, row: int) -> Markup:
        texts = "".join(
            f'<text x="{self.x(value)}" y="16">{value:g}</text>'
            for value in ticks(self.low, self.high, 5)
        )
        head = f'<svg class="scale" aria-hidden="true" style="grid-row:{row}">'
        return Markup(f"{head}{texts}</svg>")


def _baselines(
    report: Report, title: str, low: float, high: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Those that are drawn, and those so far away that the seeds would be one dot."""
    near: dict[str, float] = {}
    far: dict[str, float] = {}
    for name, by_protocol in report.baselines.items():
        value = by_protocol.get(title)
        if value is None or not math.isfinite(value):
            continue
        reach = 0.35 * (high - low)
        (near if low - reach <= value <= high + reach else far)[shown(name)] = value
    return near, far


def _pairs(report: Report, title: str, shown_rows: Sequence[int]) -> list[tuple[int, int]]:
    """Rows that follow each other, of those that are compared; all without comparisons."""
    neighbors = list(pairwise(shown_rows))
    names = [condition.name for condition in report.conditions]
    compared = {
        frozenset((d.candidate, d.reference)) for d in report.differences if d.protocol == title
    }
    if not compared:
        return neighbors
    return [(a, b) for a, b in neighbors if frozenset((names[a], names[b])) in compared]


def _grid(scale: _Scale, baselines: Mapping[str, float]) -> Markup:
    lines = [
        f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="100%"/>'
        for x in map(scale.x, ticks(scale.low, scale.high, 5))
    ]
    lines += [
        Markup('<line class="base" x1="{0}" x2="{0}" y1="0" y2="100%"><title>{1}</title></line>')
        .format(scale.x(value), f"{name}: {value:.1f}")
        for name, value in baselines.items()
    ]  # fmt: skip
    return Markup("".join(lines))


def _place(row: int, number: int, count: int) -> float:
    return row + _MIDDLE + 0.1 + _SPREAD * (2 * (number + 0.5) / count - 1)


def _joins(
    scale: _Scale,
    order: Mapping[int, int],
    rows: Mapping[int, Mapping[int, float]],
    a: int,
    b: int,
) -> Markup:
    if max(len(rows[a]), len(rows[b])) > _FEW:
        return Markup("")
    lines = []
    for seed in rows[a]:
        if seed not in rows[b]:
            continue
        ys = [scale.y(_place(order[i], list(rows[i]).index(seed), len(rows[i]))) for i in (a, b)]
        lines.append(
            f'<line class="join" x1="{scale.x(rows[a][seed])}" x2="{scale.x(rows[b][seed])}" '
            f'y1="{ys[0]}" y2="{ys[1]}"/>'
        )
    return Markup("".join(lines))


def _row(scale: _Scale, row: int, by_seed: Mapping[int, float], look: PageLook) -> Markup:
    mean = scale.x(statistics.fmean(by_seed.values()))
    top, bottom = (scale.y(row + _MIDDLE + 0.1 + side * 0.36) for side in (-1, 1))
    parts = [
        f'<line x1="{mean}" x2="{mean}" y1="{top}" y2="{bottom}" stroke="{look.color}" '
        'stroke-width="2.5"/>'
    ]
    if len(by_seed) > _FEW:
        dots = "".join(
            f'<circle cx="{scale.x(value)}" cy="{scale.y(_place(row, i, len(by_seed)))}" r="2"/>'
            for i, value in enumerate(by_seed.values())
        )
        return Markup("".join([*parts, f'<g fill="{look.color}">{dots}</g>']))
    for number, (seed, value) in enumerate(by_seed.items()):
        y = scale.y(_place(row, number, len(by_seed)))
        parts.append(
            f'<svg x="{scale.x(value)}" y="{y}" overflow="visible">{look.marker(0, 0, 4.4)}'
            f"<title>{escape(f'seed {seed}: {value:.2f}')}</title></svg>"
        )
    return Markup("".join(parts))


def _mean(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def _below(report: Report, title: str, baselines: Mapping[str, float], rows: int) -> Markup:
    """The comparisons, and what needs no training."""
    lines = [
        f"{shown(d.candidate)} against {shown(d.reference)}: {shown(d.text)}"
        for d in report.differences
        if d.protocol == title
    ]
    if baselines:
        known = ", ".join(f"{name} {value:.1f}" for name, value in baselines.items())
        lines.append(f"Without training (dotted where near): {known}.")
    items = [Markup("<li>{}</li>").format(line) for line in lines]
    if not items:
        return Markup("")
    return Markup('<ul class="soft" style="grid-row:{}">{}</ul>').format(
        rows + 3, Markup("").join(items)
    )
