"""Accuracy against pretraining epochs (the first result of Shen et al. 2020), and against time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import cast

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unmix.display import measure_title
from unmix.figures.looks import Look
from unmix.figures.series import (
    Condition,
    Point,
    conditions_of,
    joined_over_epochs,
    looks_for,
    notes_on_lines,
)
from unmix.figures.style import End, fit_label, label_ends, message, soft_ink, style
from unmix.figures.widths import inches
from unmix.results import RunResults

__all__ = [
    "BAND",
    "accuracy_against_epochs",
    "accuracy_against_time",
    "draw_band",
    "note_bands",
    "time_unit",
]

_LEAST, _WIDTH = 2.0, 7.4

BAND = "mean over seeds; {}: ± standard deviation"
"""What a figure with bands, or with bars where there is one point, says of them."""


def accuracy_against_epochs(
    conditions: Sequence[Condition] | Sequence[RunResults],
    protocol: str = "linear",
    references: Mapping[str, float] | None = None,
    *,
    looks: Mapping[str, Look] | None = None,
    width: str | float = _WIDTH,
    theme: str = "light",
) -> Figure:
    """Draw top-1 accuracy against pretraining epochs: means over the seeds, with bands.

    Conditions that differ only in their epochs form one curve of their last evaluations; any other
    is a curve of the evaluations that all its seeds have. (Shen et al. 2020, accuracy on
    ImageNet-100.)

    Args:
        conditions: Conditions, or runs, which are grouped; those without an evaluation by
            `protocol` are left out.
        protocol: Name of an evaluation protocol, such as `linear`.
        references: Horizontal lines, name to percent: `{"raw pixels": 39.5}`.
        looks: How each condition is drawn; by default chosen for this figure.
        width: "column", "page", or inches.
        theme: light, dark or inline.
    """
    return _drawn("epochs", conditions, protocol, references, looks, width, theme)


def accuracy_against_time(
    conditions: Sequence[Condition] | Sequence[RunResults],
    protocol: str = "knn",
    references: Mapping[str, float] | None = None,
    *,
    looks: Mapping[str, Look] | None = None,
    width: str | float = _WIDTH,
    theme: str = "light",
) -> Figure:
    """Draw top-1 accuracy against the time of training alone, without evaluations.

    A step with a mixture in label space takes longer, so equal epochs are not equal cost. Times
    compare only between runs on the same hardware; a condition of runs on several machines has no
    line. Each evaluation is at the mean time over the seeds.

    Args:
        conditions: As for `accuracy_against_epochs`; those whose time is not known are left out.
        protocol: Name of an evaluation protocol, such as `knn`.
        references: Horizontal lines, name to percent.
        looks: How each condition is drawn; by default chosen for this figure.
        width: "column", "page", or inches.
        theme: light, dark or inline.
    """
    return _drawn("time", conditions, protocol, references, looks, width, theme)


def _drawn(
    against: str,
    given: Sequence[Condition] | Sequence[RunResults],
    protocol: str,
    references: Mapping[str, float] | None,
    looks: Mapping[str, Look] | None,
    width: str | float,
    theme: str,
) -> Figure:
    found = joined_over_epochs(_conditions(given), protocol, against)
    curves = {series.name: points for _, series in found if (points := series.points(against))}
    owners = {series.name: condition for condition, series in found if series.name in curves}
    with rc_context(style(theme)):
        size = (inches(width), max(3.6, 1.2 + 0.21 * len(curves)))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        machines = _machines([own for own, _ in found]) if against == "time" else ""
        if not curves:
            what = "" if against == "epochs" or not found else ", or its time is not known"
            what += f" ({machines})" if machines else ""
            message(axes, f"No run has an evaluation by the protocol “{protocol}”{what}.")
            return figure
        own = looks or looks_for([Condition(name, owner.runs) for name, owner in owners.items()])
        note_bands(axes, curves.values(), notes_on_lines(series for _, series in found))
        _curves(axes, against, curves, {n: own.get(n) or own[c.name] for n, c in owners.items()},
                references or {})  # fmt: skip
        axes.set_ylabel(f"{measure_title(protocol)} top-1 accuracy (%)")
        fit_label(axes, "; ".join(filter(None, [axes.get_xlabel(), machines])))
        return figure


def _machines(conditions: Sequence[Condition]) -> str:
    """Why times do not compare, in a clause; "" where they do."""
    runs = [run for condition in conditions for run in condition.runs.values()]
    words = ["on different hardware"] if len({run.machine for run in runs} - {""}) > 1 else []
    words += ["some on a busy machine"] if any(run.busy is not None for run in runs) else []
    return ", ".join(words)


def _conditions(given: Sequence[Condition] | Sequence[RunResults]) -> list[Condition]:
    if all(isinstance(each, Condition) for each in given):
        return list(cast("Sequence[Condition]", given))
    return conditions_of(cast("Sequence[RunResults]", given))


def _curves(
    axes: Axes,
    against: str,
    curves: Mapping[str, Sequence[Point]],
    looks: Mapping[str, Look],
    references: Mapping[str, float],
) -> None:
    divisor, unit = 1.0, "Pretraining epochs"
    xs = sorted({point.x for points in curves.values() for point in points})
    if against == "time":
        divisor, word = time_unit(xs[-1])
        unit = f"Training time without evaluations ({word})"
        xs = [x / divisor for x in xs]
    axes.set_xlabel(unit)
    _limits(axes, xs, ticks=against == "epochs")
    beside = _beside(axes, len(curves)) if len(xs) == 1 else [0.0] * len(curves)
    ends = [
        draw_band(axes, name, points, looks[name], divisor, shift)
        for (name, points), shift in zip(curves.items(), beside, strict=True)
    ]
    right = axes.get_xlim()[1]
    for name, percent in references.items():
        axes.axhline(percent, color=soft_ink(), linewidth=0.9, linestyle=(0, (1, 3)), zorder=1)
        ends.append(End(right, percent, f"{name} {percent:.1f}"))
    axes.margins(y=0.08)
    axes.autoscale_view(scalex=False)
    low, high = axes.get_ylim()
    # Differences far below the variation between seeds must not fill the figure.
    spare = max(0.0, _LEAST - (high - low)) / 2
    axes.set_ylim(low - spare, high + spare)
    label_ends(axes, ends)


def _beside(axes: Axes, count: int) -> list[float]:
    """Distances from the only place that is measured, at which points do not hide each other."""
    left, right = axes.get_xlim()
    step = min(0.03, 0.8 / count) * (right - left)
    return [step * (place - (count - 1) / 2) for place in range(count)]


def draw_band(
    axes: Axes,
    name: str,
    points: Sequence[Point],
    look: Look,
    divisor: float = 1.0,
    shift: float = 0.0,
) -> End:
    """Draw the means with a band of a standard deviation; return the last point.

    Args:
        axes: Where.
        name: Of the condition.
        points: At least one.
        look: How.
        divisor: Of the points' x.
        shift: How far right of their places they are drawn.
    """
    xs, ys = [p.x / divisor + shift for p in points], [p.mean for p in points]
    axes.plot(xs, ys, **look.plot(len(xs)), zorder=3)
    if len(points) == 1 and points[0].std:
        axes.errorbar(xs, ys, [points[0].std], color=look.color, linewidth=1.2, capsize=3, zorder=2)
    elif any(p.std for p in points):
        low, high = [p.mean - p.std for p in points], [p.mean + p.std for p in points]
        axes.fill_between(xs, low, high, color=look.color, alpha=0.13, linewidth=0, zorder=1)
    return End(xs[-1], ys[-1], name, look)


def note_bands(axes: Axes, curves: Iterable[Sequence[Point]], notes: Sequence[str] = ()) -> None:
    """Say above the axes what bands are, if there is one, and what else is to be known of lines."""
    spread = [points for points in curves if any(p.std for p in points)]
    kinds = {"bar" if len(points) == 1 else "band" for points in spread}
    band = [BAND.format(" and ".join(sorted(kinds)))] if kinds else []
    if band or notes:
        text = "\n".join([*band, *notes])
        axes.set_title(text, loc="left", fontsize=7.5, color=soft_ink())


def time_unit(longest: float) -> tuple[float, str]:
    """The seconds of the unit in which a duration is best read, and its name.

    Args:
        longest: In seconds.
    """
    for seconds, name in ((3600.0, "hours"), (60.0, "minutes")):
        if longest >= 2 * seconds:
            return seconds, name
    return 1.0, "seconds"


def _limits(axes: Axes, xs: Sequence[float], ticks: bool) -> None:
    """Set the horizontal axis: ticks at the measured epochs if there is room."""
    low, high = xs[0], xs[-1]
    margin = 0.04 * (high - low) or max(1.0, 0.5 * high)
    axes.set_xlim(max(0.0, low - margin) if not ticks else low - margin, high + margin)
    near = min((b - a for a, b in pairwise(xs)), default=high)
    if ticks and (len(xs) == 1 or near >= 0.06 * (high - low)):
        axes.set_xticks(xs)
    else:
        steps = [1, 2, 2.5, 5, 10]
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=ticks, steps=steps))
