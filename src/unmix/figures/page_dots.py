"""Dots of each seed on a page: places are percentages, so that text keeps its size at any width."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from unmix.display import percents
from unmix.figures.page_curves import limits, ticks
from unmix.figures.page_looks import PageLook
from unmix.figures.report_content import Difference, Report
from unmix.figures.seed_dots import measured, neighbors, offsets, pairs_of, sentences
from unmix.names import shown

__all__ = ["dots"]

_MIDDLE = 0.6  # of a row, as the mean has more room above
_FEW = 40
"""Seeds of a condition up to which they are joined, and have markers and titles."""


def dots(report: Report, looks: Sequence[PageLook]) -> list[Markup]:
    """A panel for each protocol: a row for each condition that was measured by it."""
    titles = dict.fromkeys(title for c in report.conditions for title in c.accuracies)
    found = []
    for title in titles:
        rows = {}
        for index, condition in enumerate(report.conditions):
            if known := measured(condition.accuracies.get(title, {})):
                rows[index] = known
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
    names = {index: report.conditions[index].name for index in rows}
    for a, b in _pairs(report, title, list(rows)):
        one, other = (names[a], rows[a]), (names[b], rows[b])
        seeds = pairs_of(one, other, _differences(report, title))
        parts.append(_joins(scale, order, rows, a, b, seeds))
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
                at, percents(list(by_seed.values()))
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
    """Rows whose dots are joined."""
    names = [report.conditions[index].name for index in shown_rows]
    row_of = dict(zip(names, shown_rows, strict=True))
    return [(row_of[a], row_of[b]) for a, b in neighbors(names, _differences(report, title))]


def _differences(report: Report, title: str) -> list[Difference]:
    return [each for each in report.differences if each.protocol == title]


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


def _joins(
    scale: _Scale,
    order: Mapping[int, int],
    rows: Mapping[int, Mapping[int, float]],
    a: int,
    b: int,
    seeds: Sequence[int],
) -> Markup:
    if max(len(rows[a]), len(rows[b])) > _FEW:
        return Markup("")
    lines, places = [], {i: offsets(rows[i]) for i in (a, b)}
    for seed in seeds:
        ys = [scale.y(order[i] + _MIDDLE + places[i][seed]) for i in (a, b)]
        lines.append(
            f'<line class="join" x1="{scale.x(rows[a][seed])}" x2="{scale.x(rows[b][seed])}" '
            f'y1="{ys[0]}" y2="{ys[1]}"/>'
        )
    return Markup("".join(lines))


def _row(scale: _Scale, row: int, by_seed: Mapping[int, float], look: PageLook) -> Markup:
    mean = scale.x(statistics.fmean(by_seed.values()))
    top, bottom = (scale.y(row + _MIDDLE + side * 0.36) for side in (-1, 1))
    parts = [
        f'<line x1="{mean}" x2="{mean}" y1="{top}" y2="{bottom}" stroke="{look.color}" '
        'stroke-width="2.5"/>'
    ]
    places = {seed: scale.y(row + _MIDDLE + at) for seed, at in offsets(by_seed).items()}
    if len(by_seed) > _FEW:
        dots = "".join(
            f'<circle cx="{scale.x(value)}" cy="{places[seed]}" r="2"/>'
            for seed, value in by_seed.items()
        )
        return Markup("".join([*parts, f'<g fill="{look.color}">{dots}</g>']))
    for seed, value in by_seed.items():
        parts.append(
            f'<svg x="{scale.x(value)}" y="{places[seed]}" overflow="visible">'
            f"{look.marker(0, 0, 4.4)}"
            f"<title>{escape(f'seed {seed}: {value:.2f}')}</title></svg>"
        )
    return Markup("".join(parts))


def _below(report: Report, title: str, baselines: Mapping[str, float], rows: int) -> Markup:
    """The comparisons, and what needs no training."""
    lines = [shown(line) for line in sentences(_differences(report, title))]
    if baselines:
        known = ", ".join(f"{name} {value:.1f}" for name, value in baselines.items())
        lines.append(f"Without training (dotted where near): {known}.")
    items = [Markup("<li>{}</li>").format(line) for line in lines]
    if not items:
        return Markup("")
    return Markup('<ul class="soft" style="grid-row:{}">{}</ul>').format(
        rows + 3, Markup("").join(items)
    )
