"""Conditions over paired seeds: a dot for each seed, joined within a seed, and the means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmix.display import percents
from unmix.figures.looks import Look, looks_of
from unmix.figures.report_content import Difference
from unmix.figures.seed_dots import measured, neighbors, offsets, pairs_of, sentences
from unmix.figures.style import message, shorten, soft_ink, style

__all__ = ["Panel", "paired_dots"]

Accuracies = Mapping[str, Mapping[int, float]]
"""For each condition, accuracy in percent by seed."""

_ROW = 0.44  # inches


@dataclass(frozen=True)
class Panel:
    """One measurement of conditions.

    Attributes:
        conditions: For each condition, the accuracy in percent by seed.
        baselines: Accuracy of what needs no training, by name.
        comparisons: Their seeds are joined, and they are written below. Without any, the seeds of
            rows that follow each other are joined.
    """

    conditions: Accuracies
    baselines: Mapping[str, float] = field(default_factory=dict)
    comparisons: Sequence[Difference] = ()


def paired_dots(
    rows: Mapping[str, Mapping[str, Panel | Accuracies]],
    *,
    looks: Mapping[str, Look] | None = None,
    shared: bool = True,
    theme: str = "light",
) -> Figure:
    """Draw every run as a dot in its condition's row, the mean as a bar with its number.

    Thin lines join the dots of one seed. The first condition, and those that are a reference, have
    hollow dots. What needs no training is a dotted line.

    Args:
        rows: For each label of a horizontal axis and each title of a panel, its conditions.
        looks: How each condition is drawn; by default chosen for this figure.
        shared: Whether all panels of a row have one scale.
        theme: light, dark or inline.
    """
    grid = {
        label: {t: p if isinstance(p, Panel) else Panel(p) for t, p in panels.items()}
        for label, panels in rows.items()
    }
    panels = [panel for row in grid.values() for panel in row.values()]
    names = list(dict.fromkeys(name for panel in panels for name in panel.conditions))
    own = looks or _looks(names, panels)
    with rc_context({**style(theme), "axes.grid.axis": "x"}):
        columns = max((len(row) for row in grid.values()), default=0)
        lines = max((len(_lines(panel)) for panel in panels), default=0)
        above = max((len(panel.baselines) for panel in panels), default=0)
        height = 0.75 + _ROW * max(len(names), 2) + 0.15 * (above + lines)
        width = 3.4 if lines else 2.9
        figure = Figure(
            figsize=(1.9 + width * max(columns, 2), 0.25 + height * max(len(grid), 1)),
            layout="constrained",
        )
        if not any(any(panel.conditions.values()) for panel in panels):
            message(figure.add_subplot(), "Nothing was measured yet.")
            return figure
        cells = figure.subplots(
            len(grid), columns, squeeze=False, sharex="row" if shared else False, sharey=True
        )
        for number, ((label, row), line) in enumerate(zip(grid.items(), cells, strict=True)):
            for axes, (title, panel) in zip(line, row.items(), strict=False):
                _panel(axes, panel, names, own)
                _below(axes, label, panel)
                head = title if number == 0 else ""
                axes.set_title(head + "\n" * len(panel.baselines), linespacing=1.1)
            for axes in line[len(row) :]:
                axes.set_axis_off()
        # Once all have their limits.
        for line, row in zip(cells, grid.values(), strict=True):
            for axes, panel in zip(line, row.values(), strict=False):
                _baselines(axes, panel.baselines)
        texts = ["\n".join(wrap(shorten(name, 60), 30)) for name in names]
        cells[0][0].set_yticks(range(len(names)), texts)
        cells[0][0].set_ylim(len(names) - 0.5, -0.5)
        return figure


def _looks(names: Sequence[str], panels: Sequence[Panel]) -> dict[str, Look]:
    """The first condition and references hollow, all of different colors and markers."""
    candidates = {each.candidate for panel in panels for each in panel.comparisons}
    references = {each.reference for panel in panels for each in panel.comparisons}
    plain = {*names[:1], *(references - candidates)}
    return looks_of({name: ("", "none" if name in plain else name) for name in names})


def _panel(axes: Axes, panel: Panel, names: Sequence[str], looks: Mapping[str, Look]) -> None:
    known = {name: measured(by_seed) for name, by_seed in panel.conditions.items()}
    place = {
        (name, seed): names.index(name) + offset
        for name, by_seed in known.items()
        for seed, offset in offsets(by_seed).items()
    }
    for other, one in neighbors([n for n in names if known.get(n)], panel.comparisons):
        ours, theirs = known[one], known[other]
        for seed in pairs_of((one, ours), (other, theirs), panel.comparisons):
            axes.plot(
                [theirs[seed], ours[seed]], [place[other, seed], place[one, seed]],
                color=soft_ink(), linewidth=0.7, alpha=0.7, zorder=1,
            )  # fmt: skip
    for name, by_seed in known.items():
        if not by_seed:
            continue
        row, look = names.index(name), looks[name]
        mean = sum(by_seed.values()) / len(by_seed)
        axes.vlines(mean, row - 0.37, row + 0.37, color=look.color, linewidth=2.0, zorder=2)
        axes.plot(
            list(by_seed.values()), [place[name, seed] for seed in by_seed],
            linestyle="", zorder=3, **look.dots(),
        )  # fmt: skip
        axes.annotate(
            percents(list(by_seed.values())), (1, row), xycoords=("axes fraction", "data"),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5,
        )  # fmt: skip
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="both", length=0)
    axes.tick_params(axis="y", labelcolor=axes.xaxis.label.get_color(), labelsize=9)
    axes.locator_params(axis="x", nbins=6)
    axes.margins(x=0.06)


def _lines(panel: Panel) -> list[str]:
    """The comparisons, in lines that fit below the panel."""
    return [
        line
        for text in sentences(panel.comparisons)
        for line in wrap(text, 60, subsequent_indent="  ")
    ]


def _below(axes: Axes, label: str, panel: Panel) -> None:
    """The label of the axis, and the comparisons."""
    lines = _lines(panel)
    axes.set_xlabel("\n".join([*filter(None, [label]), *([" " * 3] * len(lines))]))
    if lines:
        # Room is kept by the label; the text itself may be a little wider than its panel.
        axes.annotate(
            "\n".join(lines), (0.5, 0), xycoords="axes fraction", va="top", ha="center",
            xytext=(0, -34 if label else -22), textcoords="offset points", fontsize=7.5,
            color=soft_ink(), linespacing=1.35,
        ).set_in_layout(False)  # fmt: skip


def _baselines(axes: Axes, baselines: Mapping[str, float]) -> None:
    """Dotted lines, named above the axes; each name has a line of its own."""
    if not baselines:
        return
    low, high = axes.get_xlim()
    spare = 0.04 * (high - low)
    low = min(low, *(value - spare for value in baselines.values()))
    high = max(high, *(value + spare for value in baselines.values()))
    axes.set_xlim(low, high)
    ordered = sorted(baselines.items(), key=lambda item: item[1])
    for level, (name, value) in enumerate(reversed(ordered)):
        axes.axvline(value, color=soft_ink(), linestyle=(0, (1, 2)), linewidth=1.0, zorder=0)
        left = value < (low + high) / 2
        axes.annotate(
            f"{name} {value:.1f}", (value, 1.0), xycoords=("data", "axes fraction"),
            xytext=(0, 4 + 10 * level), textcoords="offset points", color=soft_ink(),
            fontsize=7.5, ha="left" if left else "right",
            arrowprops=None if level == 0 else {
                "arrowstyle": "-", "color": soft_ink(), "linewidth": 0.6,
                "linestyle": ":", "shrinkA": 0, "shrinkB": 0, "relpos": (0 if left else 1, 0),
            },
        ).set_in_layout(False)  # fmt: skip
