"""The report as one self-contained HTML file, drawn from a `Report` of `report_content`."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

import unmix
from unmix.figures.page_curves import Chart, chart_of, entries
from unmix.figures.page_dots import dots
from unmix.figures.page_looks import PageLook, page_looks
from unmix.figures.page_tables import page_table
from unmix.figures.report_content import Picture, Report
from unmix.files import atomic_write
from unmix.names import shown, shown_command

__all__ = ["page", "write_page"]

CITATIONS = (
    "Zhiqiang Shen, Zechun Liu, Zhuang Liu, Marios Savvides, Trevor Darrell. Rethinking Image "
    "Mixture for Unsupervised Visual Representation Learning. arXiv:2003.05438v1, 2020. "
    "(Mixtures in image space.)",
    "Zhiqiang Shen, Zechun Liu, Zhuang Liu, Marios Savvides, Trevor Darrell, Eric Xing. Un-Mix: "
    "Rethinking Image Mixtures for Unsupervised Visual Representation Learning. AAAI 2022. "
    "(Mixtures in label space.)",
)

_RUNS = 60
"""Runs whose details are on the page; of more, they would be most of the file."""
_COMMANDS = 4


def write_page(path: Path, report: Report) -> Path:
    """Write the page of a report; gives its path.

    Args:
        path: The file; missing folders are created.
        report: What it says.

    Raises:
        UserError: if the file cannot be written.
    """
    atomic_write(Path(path), page(report).encode(errors="backslashreplace"))
    return Path(path)


def page(report: Report) -> str:
    """The HTML of a report.

    It loads nothing, and a Content Security Policy forbids that it does: styles, scripts and
    figures are inside. Without a script it shows the same numbers.

    Args:
        report: What it says; any texts are escaped.
    """
    looks = page_looks(report.conditions)
    charts = [chart_of(curves, report.conditions) for curves in report.curves if curves.curves]
    scripts = [_asset("uPlot.iife.min.js"), _asset("report.js")]
    live = report.running is not None and bool(report.running.refresh)
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=_safe(report),
            tables=[page_table(table, i) for i, table in enumerate(report.tables)],
            dots=dots(report, looks),
            charts=[_chart(chart, i, report, looks) for i, chart in enumerate(charts)],
            pictures=_pictures(report),
            differing=_differing(report),
            commands=_commands(report),
            runs=_safe(report.runs[:_RUNS]),
            more_runs=max(0, len(report.runs) - _RUNS),
            data=_json(
                {
                    "names": [shown(condition.name) for condition in report.conditions],
                    "looks": [look.as_dict() for look in looks],
                    "charts": [chart.as_dict() for chart in charts],
                }
            ),
            policy=_policy(scripts, live),
            styles=Markup(_asset("uPlot.min.css") + _asset("report.css")),
            scripts=[Markup(script) for script in scripts],
            citations=CITATIONS,
            version=unmix.__version__,
        )
    )


@cache
def _environment() -> Environment:
    folder = resources.files("unmix.figures")
    return Environment(
        loader=FunctionLoader(lambda file: folder.joinpath(file).read_text(encoding="utf-8")),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


@cache
def _asset(name: str) -> str:
    folder = resources.files("unmix.figures").joinpath("page")
    text = folder.joinpath(name).read_text(encoding="utf-8")
    if name == "uPlot.iife.min.js":
        license_ = folder.joinpath("uPlot.LICENSE.txt").read_text(encoding="utf-8")
        return f"/*!\n{license_}*/\n{text}"
    return text


def _policy(scripts: Sequence[str], live: bool) -> str:
    """Scripts of this page alone, and no connection but that of a live page to its own server."""
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    connect = "; connect-src 'self'" if live else ""
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"
        f"{connect}; base-uri 'none'; form-action 'none'"
    )


def _json(content: Mapping[str, Any]) -> Markup:
    """JSON that cannot end the script element that it is in, or be taken for a comment."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _safe(value: Any) -> Any:
    """All texts as one visible line, except SVG; dataclasses become their fields."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {shown(str(key)): _safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        skipped = {"tables", "curves", "pictures", "samples", "runs"}
        return {
            name: _safe(getattr(value, name))
            for name in value.__dataclass_fields__
            if name not in skipped or not isinstance(value, Report)
        }
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _chart(chart: Chart, number: int, report: Report, looks: Sequence[PageLook]) -> dict[str, Any]:
    timed = [False, True] if chart.timed else [False]
    return {
        "id": f"chart-{number}",
        "title": chart.title,
        "label": chart.label,
        "at": "At the end" if report.running is None else "So far",
        "caption": chart.caption,
        "legend": entries(chart, report.conditions, looks),
        "pictures": [chart.svg(looks, time=time) for time in timed],
    }


def _pictures(report: Report) -> list[dict[str, Any]]:
    """Figures under their own headings, then samples of mixtures under one."""
    parts: list[dict[str, Any]] = [
        {"title": shown(picture.title), "pictures": [_picture(picture, "")]}
        for picture in report.pictures
    ]
    if report.samples:
        own = [_picture(picture, picture.title) for picture in report.samples]
        parts.append({"title": "Mixtures of these runs", "pictures": own})
    return [{**part, "id": f"picture-{i}"} for i, part in enumerate(parts)]


def _picture(picture: Picture, title: str) -> dict[str, Any]:
    alt = picture.alt or f"{picture.title}. {picture.caption}"
    return {
        "title": shown(title),
        "caption": shown(picture.caption),
        "alt": shown(alt),
        "svg": Markup(picture.svg),
    }


def _differing(report: Report) -> dict[str, Any] | None:
    if not report.differing:
        return None
    names = [shown(condition.name) for condition in report.conditions]
    return {
        "columns": ["setting", *names],
        "rows": [[shown(name), *map(shown, values)] for name, values in report.differing],
    }


def _commands(report: Report) -> tuple[Any, Any]:
    """The first ones, and those that are folded."""
    found = [
        {"name": shown(command.name), "text": shown_command(command.text)}
        for command in report.commands
    ]
    return found[:_COMMANDS], found[_COMMANDS:]
