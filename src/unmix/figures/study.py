"""Conditions with paired seeds: a dot per run, lines between the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmix.figures.style import STYLE, message, shorten

__all__ = ["Panel", "runs_by_condition"]

_LIGHT = {"ink": "#222222", "soft": "#5f5f5f", "line": "#b9b9b9", "grid": "#e3e3e3",
          "paper": "#ffffff", "mark": "#b3261e"}  # fmt: skip
_DARK = {"ink": "#ececec", "soft": "#a8a8a8", "line": "#6e6e6e", "grid": "#33363b",
         "paper": "#0d1117", "mark": "#ff9d85"}  # fmt: skip
_OFFSET = 0.3  # of a seed's dot from the middle of its row


@dataclass(frozen=True)
class Panel:
    """One measurement of all conditions.

    Attributes:
        title: Of the axis.
        conditions: For each condition, the accuracy in percent by seed.
        baselines: Accuracy of what needs no training, by name.
        comparisons: (candidate, reference, text): the seeds of both are joined, and the text, such
            as "+3.1 (95% interval +2.0 to +4.2) against plain", is written below.
    """

    title: str
    conditions: Mapping[str, Mapping[int, float]]
    baselines: Mapping[str, float]
    comparisons: Sequence[tuple[str, str, str]]


def runs_by_condition(panels: Sequence[Panel], *, dark: bool = False) -> Figure:
    """Draw every run as a dot in its condition's row, the mean as a bar.

    Seeds of two conditions that are compared are joined if their rows are neighbors. Candidates of
    comparisons have filled dots, all others hollow ones. What needs no training is a dotted line.

    Args:
        panels: One or more, of the same conditions.
        dark: For a dark background.
    """
    colors = _DARK if dark else _LIGHT
    rows = len(panels[0].conditions)
    with rc_context(STYLE):
        figure = Figure(
            figsize=(9.2, 1.5 + 0.46 * rows), facecolor=colors["paper"], layout="constrained"
        )
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            if any(panel.conditions.values()):
                _draw(axis, panel, colors)
            else:
                message(axis, "nothing is measured yet")
        axes[0].set_yticks(range(rows), [shorten(name) for name in panels[0].conditions])
        axes[0].set_ylim(rows - 0.5, -0.5)
    return figure


def _draw(axes: Axes, panel: Panel, colors: Mapping[str, str]) -> None:
    names = list(panel.conditions)
    candidates = {candidate for candidate, *_ in panel.comparisons}
    place = {
        (name, seed): row + _OFFSET * (2 * (i + 0.5) / len(seeds) - 1)
        for row, (name, by_seed) in enumerate(panel.conditions.items())
        for seeds in [sorted(by_seed)]
        for i, seed in enumerate(seeds)
    }
    _style(axes, colors)
    for candidate, reference, _ in panel.comparisons:
        if abs(names.index(candidate) - names.index(reference)) != 1:
            continue
        ours, theirs = panel.conditions[candidate], panel.conditions[reference]
        for seed in sorted(set(ours) & set(theirs)):
            axes.plot(
                [theirs[seed], ours[seed]],
                [place[reference, seed], place[candidate, seed]],
                color=colors["line"], linewidth=0.8, zorder=1,
            )  # fmt: skip
    for row, (name, by_seed) in enumerate(panel.conditions.items()):
        if not by_seed:
            continue
        color = colors["mark"] if name in candidates else colors["ink"]
        mean = sum(by_seed.values()) / len(by_seed)
        axes.vlines(mean, row - 0.38, row + 0.38, color=color, linewidth=1.8, zorder=2)
        seeds = list(by_seed)
        axes.scatter(
            [by_seed[seed] for seed in seeds],
            [place[name, seed] for seed in seeds],
            s=20, zorder=3, linewidth=1.0, edgecolor=color,
            facecolor=color if name in candidates else colors["paper"],
        )  # fmt: skip
    _baselines(axes, panel.baselines, colors)
    lines = [
        f"{text}, {candidate}" if len(candidates) > 1 else text
        for candidate, _, text in panel.comparisons
    ]
    # Room below; the text itself may be wider than its panel.
    axes.set_xlabel(panel.title + "\n" * len(lines))
    axes.annotate(
        "\n".join(lines), (0.5, 0), xycoords="axes fraction", xytext=(0, -33), va="top",
        ha="center", textcoords="offset points", color=colors["ink"], fontsize=7.5,
    ).set_in_layout(False)  # fmt: skip


def _baselines(axes: Axes, baselines: Mapping[str, float], colors: Mapping[str, str]) -> None:
    """Dotted lines, named above the axes; names of lines that are close share a place."""
    low, high = axes.get_xlim()
    low = min([low, *(value - 0.04 * (high - low) for value in baselines.values())])
    axes.set_xlim(low, high)
    ordered = sorted(baselines.items(), key=lambda item: item[1])
    axes.set_title("\n" * (len(baselines) - 1), fontsize=7)  # room for their names
    for level, (name, value) in enumerate(reversed(ordered)):
        axes.axvline(value, color=colors["soft"], linestyle=":", linewidth=1.1, zorder=0)
        axes.annotate(
            name, (value, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 4 + 10 * level),
            textcoords="offset points", color=colors["soft"], fontsize=7.5,
            arrowprops=None if level == 0 else {
                "arrowstyle": "-", "color": colors["soft"], "linewidth": 0.6,
                "linestyle": ":", "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0),
            },
        ).set_in_layout(False)  # fmt: skip


def _style(axes: Axes, colors: Mapping[str, str]) -> None:
    axes.set_facecolor(colors["paper"])
    axes.grid(axis="x", color=colors["grid"])
    axes.grid(axis="y", visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(colors["line"])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="both", length=0, colors=colors["soft"], labelcolor=colors["ink"])
    axes.xaxis.label.set_color(colors["ink"])
