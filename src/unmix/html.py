"""HTML for notebooks: tables and line charts, without dependencies."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from unmix.names import shown

__all__ = ["chart", "escaped", "table"]

_WIDTH, _HEIGHT, _MARGIN = 360, 160, 34
_DASHES = ("", "6 3", "2 3", "8 3 2 3")


def escaped(value: object) -> str:
    """Return a text escaped for HTML."""
    return html.escape(shown(value))


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numeric: Sequence[bool] = (),
    bold: Iterable[tuple[int, int]] = (),
) -> str:
    """Return an HTML table.

    Args:
        columns: Headings; no header row if empty.
        rows: Cells of each row, one per column.
        numeric: For each column, whether it is right-aligned.
        bold: (row, column) of the cells in bold.
    """
    strong = set(bold)

    def cell(kind: str, text: str, row: int, column: int) -> str:
        right = column < len(numeric) and numeric[column]
        inner = escaped(text)
        inner = f"<b>{inner}</b>" if (row, column) in strong else inner
        return f'<{kind} style="text-align:{"right" if right else "left"}">{inner}</{kind}>'

    lines = ["<table>"]
    if columns:
        cells = "".join(cell("th", text, -1, i) for i, text in enumerate(columns))
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    body = [
        "<tr>" + "".join(cell("td", text, r, i) for i, text in enumerate(row)) + "</tr>"
        for r, row in enumerate(rows)
    ]
    return "".join([*lines, "<tbody>", *body, "</tbody></table>"])


def chart(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return a line chart as inline SVG in the text color; empty if no line has two points.

    Args:
        title: The quantity shown, with its unit.
        series: Finite points (x, y) by increasing x, for each line by name.
    """
    lines = {name: points for name, points in series.items() if len(points) > 1}
    if not lines:
        return ""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)

    def place(x: float, y: float) -> str:
        across = (x - x0) / ((x1 - x0) or 1) * (_WIDTH - 2 * _MARGIN)
        up = (y - y0) / ((y1 - y0) or 1) * (_HEIGHT - 2 * _MARGIN)
        return f"{_MARGIN + across:.1f},{_HEIGHT - _MARGIN - up:.1f}"

    def text(x: float, y: float, words: str, anchor: str = "start") -> str:
        return (
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="11" '
            f'fill="currentColor">{escaped(words)}</text>'
        )

    parts = [text(_MARGIN, 14, title)]
    for i, (name, points) in enumerate(lines.items()):
        dash = _DASHES[i % len(_DASHES)]
        drawn = " ".join(place(x, y) for x, y in points)
        parts.append(
            f'<polyline points="{drawn}" fill="none" stroke="currentColor" stroke-width="1.5" '
            f'stroke-dasharray="{dash}"><title>{escaped(name)}</title></polyline>'
        )
        x, y = map(float, place(*points[-1]).split(","))
        parts.append(text(x - 4, y - 5, name, "end"))
    low, base = _HEIGHT - _MARGIN, _HEIGHT - 12
    parts += [
        text(_MARGIN - 4, low, f"{y0:.4g}", "end"),
        text(_MARGIN - 4, _MARGIN + 4, f"{y1:.4g}", "end"),
        text(_MARGIN, base, f"{x0:g}"),
        text(_WIDTH - _MARGIN, base, f"{x1:g}", "end"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{escaped(title)}">{"".join(parts)}</svg>'
    )
