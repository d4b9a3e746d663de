"""Tables of a page: what columns are sorted by, and their CSV."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from dataclasses import replace
from typing import Any

from unmix.figures.report_content import Entry, Table
from unmix.figures.table import ResultsTable
from unmix.names import shown, shown_cell

__all__ = ["csv_of", "page_table", "table_of"]

_NUMBER = re.compile(r"[-+\u2212]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_SPREAD = re.compile(rf"({_NUMBER.pattern})\s*±\s*({_NUMBER.pattern})")
_FEW = 12
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(?::(\d\d))? (s|min|h)")  # of `display.duration`
_UNITS = {"s": 1, "min": 60, "h": 3600}


def table_of(title: str, table: ResultsTable, caption: str = "") -> Table:
    """A table of results for the page."""
    rows = [[Entry(c.text, c.value, c.spread, c.best) for c in row] for row in table.rows]
    return Table(title, table.columns, table.numeric, rows, caption)


def page_table(table: Table, number: int) -> dict[str, Any]:
    """What the template shows of a table."""
    rows = []
    for row in table.rows:
        cells = []
        for entry, numeric in zip(row, table.numeric, strict=True):
            value = _value(_parsed(entry)) if numeric else None
            key = ("" if value is None else f"{value:.10g}") if numeric else shown(entry.text)
            classes = " ".join(["number"] * numeric + ["best"] * entry.best)
            cells.append(
                {"text": shown(entry.text), "key": key, "classes": classes, "best": entry.best}
            )
        rows.append(cells)
    data = base64.b64encode(csv_of(table).encode("utf-8-sig", "backslashreplace")).decode()
    name = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
    return {
        "id": f"table-{number}",
        "title": shown(table.title),
        "columns": [
            {"text": shown(text), "numeric": numeric}
            for text, numeric in zip(table.columns, table.numeric, strict=True)
        ],
        "rows": rows,
        # The first one is the result.
        "folded": number > 0 and len(rows) > _FEW,
        "caption": shown(table.caption),
        "file": f"{name or 'table'}.csv",
        "csv": f"data:text/csv;charset=utf-8;base64,{data}",
    }


def csv_of(table: Table) -> str:
    """A table as CSV (RFC 4180): numbers plain, standard deviations in columns of their own.

    A text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    rows = [
        [
            _parsed(entry) if numeric else entry
            for entry, numeric in zip(row, table.numeric, strict=True)
        ]
        for row in table.rows
    ]
    spread = [any(row[i].spread is not None for row in rows) for i in range(len(table.columns))]
    file = io.StringIO()
    writer = csv.writer(file)
    head: list[str] = []
    for column, more in zip(table.columns, spread, strict=True):
        head += [_text(column), *([_text(f"{column} std")] if more else [])]
    writer.writerow(head)
    for row in rows:
        words: list[str] = []
        for entry, numeric, more in zip(row, table.numeric, spread, strict=True):
            words.append(_number(entry) if numeric else _text(entry.text))
            if more:
                words.append("" if entry.spread is None else f"{entry.spread:.10g}")
        writer.writerow(words)
    return file.getvalue()


def _parsed(entry: Entry) -> Entry:
    """`70.1 ± 0.4` as number and deviation, `3:07 min` as seconds, `1.75x` as 1.75."""
    text = entry.text.strip()
    if entry.value is not None:
        return entry
    if timed := _DURATION.fullmatch(text):
        whole, part, unit = timed.groups()
        return replace(
            entry, value=float(whole) * _UNITS[unit] + float(part or 0) * _UNITS[unit] / 60
        )
    if text.endswith("x") and _NUMBER.fullmatch(text[:-1]):
        return replace(entry, value=float(text[:-1].replace(",", "")))
    found = _SPREAD.fullmatch(text)
    if not found:
        return entry
    value, spread = (float(part.replace(",", "").replace("\u2212", "-")) for part in found.groups())
    return replace(entry, value=value, spread=spread)


def _number(entry: Entry) -> str:
    """The number where there is one alone; a note beside it is kept as text."""
    if entry.value is not None:
        return f"{entry.value:.10g}" if math.isfinite(entry.value) else ""
    text = entry.text.strip()
    value = _value(entry)
    if value is None:
        return "" if text in ("–", "-", "") else _text(text)
    return f"{value:.10g}" if _NUMBER.fullmatch(text) else _text(text, signed=True)


def _value(entry: Entry) -> float | None:
    if entry.value is not None:
        return entry.value if math.isfinite(entry.value) else None
    found = _NUMBER.search(entry.text)
    return float(found[0].replace(",", "").replace("\u2212", "-")) if found else None


def _text(text: str, *, signed: bool = False) -> str:
    # A number with its sign is no formula.
    return shown(text) if signed and _NUMBER.match(text) else shown_cell(text)
