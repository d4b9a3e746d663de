"""Conditions over paired seeds: a dot for each seed, joined within a seed, and the means."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from textwrap import fill

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmix.figures.style import GRAY, STYLE, message, shorten

__all__ = ["inline_svg", "paired_dots"]

Panel = Mapping[str, Mapping[int, float]]
"""For each condition, accuracy in percent by seed."""

# Dark enough on white and bright enough on black; markers differ too, for black and white.
_COLORS = ("#808084", "#CC3311", "#0077BB", "#009966", "#AA3377", "#B8860B")
_MARKERS = "oD^sPv"
_INK = "#123456"  # stands for the color of the text around an inline figure


@rc_context({**STYLE, "axes.grid.axis": "y", "grid.color": GRAY, "grid.alpha": 0.35})
def paired_dots(
    rows: Mapping[str, Mapping[str, Panel]], *, ink: str = "#333333", transparent: bool = False
) -> Figure:
    """Draw accuracies of conditions: a thin line for each seed, a bar and a number for each mean.

    The first condition of a panel has hollow dots. All panels of a row have one scale.

    Args:
        rows: For each label of a vertical axis and each title of a panel, its conditions.
        ink: Color of text and axes.
        transparent: Leave out the background.
    """
    columns = max((len(panels) for panels in rows.values()), default=0)
    names = list(dict.fromkeys(n for panels in rows.values() for p in panels.values() for n in p))
    figure = Figure(
        figsize=(1.0 + 2.1 * max(columns, 2), 0.6 + 2.1 * max(len(rows), 1)), layout="constrained"
    )
    if not any(p for panels in rows.values() for p in panels.values()):
        message(figure.add_subplot(), "Nothing was measured yet.")
    elif columns:
        grid = figure.subplots(len(rows), columns, squeeze=False, sharey="row")
        for number, ((label, panels), cells) in enumerate(zip(rows.items(), grid, strict=True)):
            for axes, (title, panel) in zip(cells, panels.items(), strict=False):
                _panel(axes, panel, names, ink)
                if number == 0:
                    axes.set_title(title, color=ink)
            cells[0].set_ylabel(label, color=ink)
            for axes in cells[len(panels) :]:
                axes.set_axis_off()
    if transparent:
        figure.patch.set_alpha(0)
    return figure


def _panel(axes: Axes, panel: Panel, names: Sequence[str], ink: str) -> None:
    at = {name: x for x, name in enumerate(name for name in panel if panel[name])}
    for seed in sorted({seed for values in panel.values() for seed in values}):
        points = [(at[name], panel[name][seed]) for name in at if seed in panel[name]]
        if len(points) > 1:
            axes.plot(*zip(*points, strict=True), color="#888888", linewidth=0.7, zorder=1)
    for name, x in at.items():
        number, values = names.index(name), list(panel[name].values())
        color = _COLORS[number % len(_COLORS)]
        axes.plot(
            [x] * len(values), values, linestyle="", marker=_MARKERS[number % len(_MARKERS)],
            color=color, markerfacecolor="none" if number == 0 else color, zorder=2,
        )  # fmt: skip
        mean = sum(values) / len(values)
        axes.plot([x + 0.1, x + 0.26], [mean, mean], color=ink, linewidth=2.2, zorder=3)
        axes.annotate(f"{mean:.1f}", (x + 0.3, mean), va="center", color=ink, fontsize=8.5)
    axes.set_xlim(-0.4, max(len(at) - 0.25, 0.9))
    axes.set_xticks(list(at.values()), [fill(shorten(name, 40), 13) for name in at])
    axes.tick_params(colors=ink, labelcolor=ink)
    axes.set_facecolor("none")
    axes.margins(y=0.18)


def inline_svg(rows: Mapping[str, Mapping[str, Panel]], alt: str) -> str:
    """The figure as an SVG element on one line, in the color of the text around it.

    So it is legible on a light and on a dark page.

    Args:
        rows: As for `paired_dots`.
        alt: What the figure shows, for those who do not see it.
    """
    buffer = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": "unmix"}):
        figure = paired_dots(rows, ink=_INK, transparent=True)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    head = f'<svg role="img" aria-label="{_attribute(alt)}" style="width:100%;height:auto" '
    return " ".join(svg.replace("<svg ", head, 1).split())


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
