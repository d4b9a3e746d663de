"""Accuracy against pretraining epochs, the first result of Shen et al. 2020."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unmix.display import measure_title, run_label
from unmix.figures.style import (
    GRAY,
    STYLE,
    End,
    color_of,
    label_ends,
    line_of,
    marker_of,
    message,
)
from unmix.results import RunResults

__all__ = ["accuracy_against_epochs"]

_LEAST = 2.0

_SETTINGS = ("data", "backbone", "width", "size", "seed")


@dataclass(frozen=True)
class _Curve:
    run: RunResults
    points: tuple[tuple[int, float], ...]
    named: bool


@rc_context(STYLE)
def accuracy_against_epochs(
    results: Sequence[RunResults],
    protocol: str = "linear",
    references: Mapping[str, float] | None = None,
) -> Figure:
    """Draw top-1 accuracy against pretraining epochs, baselines dotted, mixtures solid.

    Runs that differ only in their epochs form one curve of their last evaluations; any other run is
    a curve of all its evaluations. (Shen et al. 2020, accuracy on ImageNet-100.)

    Args:
        results: The runs; those without an evaluation by `protocol` are left out.
        protocol: Name of an evaluation protocol, such as `linear`.
        references: Horizontal lines, name to percent: `{"raw pixels": 39.5}`.
    """
    curves = _curves([run for run in results if run.of(protocol)], protocol)
    figure = Figure(figsize=(6.4, max(3.8, 1.2 + 0.19 * len(curves))), layout="constrained")
    axes = figure.add_subplot()
    title = measure_title(protocol)
    if not curves:
        message(axes, f"No run has an evaluation by the protocol “{protocol}”.")
        return figure
    axes.set(xlabel="Pretraining epochs", ylabel=f"{title} top-1 accuracy (%)")
    varying = [name for name in _SETTINGS if len({getattr(c.run, name) for c in curves}) > 1]
    ends = []
    for curve in curves:
        run, (xs, ys) = curve.run, zip(*curve.points, strict=True)
        color, mixture = color_of(run.method), run.mixture
        axes.plot(xs, ys, line_of(mixture), color=color, **marker_of(mixture, len(xs)))
        ends.append(End(xs[-1], ys[-1], _label(curve, varying), color))
    _limits(axes, sorted({x for curve in curves for x, _ in curve.points}))
    right = axes.get_xlim()[1]
    for name, percent in (references or {}).items():
        axes.axhline(percent, color=GRAY, linewidth=0.9, linestyle=(0, (6, 3)), zorder=1)
        ends.append(End(right, percent, f"{name} {percent:.1f}", GRAY))
    axes.margins(y=0.08)
    axes.autoscale_view(scalex=False)
    low, high = axes.get_ylim()
    # Differences far below the variation between seeds must not fill the figure.
    spare = max(0.0, _LEAST - (high - low)) / 2
    axes.set_ylim(low - spare, high + spare)
    label_ends(axes, ends)
    return figure


def _curves(results: Sequence[RunResults], protocol: str) -> list[_Curve]:
    """Join the runs that differ only in their epochs, baselines first."""
    groups: dict[tuple[object, ...], list[RunResults]] = {}
    for run in sorted(results, key=lambda run: not run.baseline):
        key = (run.method, run.mixture, *(getattr(run, name) for name in _SETTINGS))
        groups.setdefault(key, []).append(run)
    curves = []
    for runs in groups.values():
        last = [(row.epoch, row.top1) for run in runs if (row := run.final(protocol))]
        if len(runs) > 1 and len({epoch for epoch, _ in last}) == len(last):
            curves.append(_Curve(runs[0], tuple(sorted(last)), named=False))
            continue
        # The same epochs twice: the runs differ in a setting that is not in their results.
        for run in runs:
            points = {row.epoch: row.top1 for row in run.of(protocol)}
            curves.append(_Curve(run, tuple(points.items()), named=len(runs) > 1))
    return curves


def _label(curve: _Curve, varying: Sequence[str]) -> str:
    run = curve.run
    words = {
        "data": run.data,
        "backbone": run.backbone,
        "width": f"width {run.width:g}",
        "size": f"{run.size} px",
        "seed": f"seed {run.seed}",
    }
    parts = [run_label(run.method, run.mixture), *(words[name] for name in varying)]
    return ", ".join([*parts, run.name] if curve.named else parts)


def _limits(axes: Axes, epochs: Sequence[int]) -> None:
    """Set the epoch axis: ticks at the measured epochs if there is room."""
    low, high = epochs[0], epochs[-1]
    margin = 0.04 * (high - low) or max(1.0, 0.5 * high)
    axes.set_xlim(low - margin, high + margin)
    near = min((b - a for a, b in pairwise(epochs)), default=high)
    if len(epochs) == 1 or near >= 0.06 * (high - low):
        axes.set_xticks(epochs)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
