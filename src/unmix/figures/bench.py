"""The time of a training step by stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from unmix.display import run_label
from unmix.figures.style import GRAY, STYLE

__all__ = ["step_chart"]

_COLORS = {"forward": "#0077BB", "backward": "#33A5CC", "step": "#222222", "limit": "#009966"}
_BESIDE = "#CC3311"
_LABELS = {"step": "whole step", "limit": "model at the speed\nof a matrix product"}


def step_chart(measured: Mapping[str, Any]) -> Figure:
    """Draw milliseconds per step of each stage, of whole steps, and of the limit, as bars.

    Args:
        measured: The result of `unmix.commands.bench`.
    """
    settings = measured["settings"]
    batch = settings["batch_size"]
    times = {name: row["milliseconds_per_step"] for name, row in measured["stages"].items()}
    times["limit"] = 1e3 * batch / measured["images_per_second_at_matmul_rate"]
    names = list(times)
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.9 + 0.36 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(
            range(len(names)),
            list(times.values()),
            color=[_COLORS.get(name, _BESIDE) for name in names],
            height=0.62,
        )
        longest = max(times.values())
        for place, (name, value) in enumerate(times.items()):
            rate = 1e3 * batch / value
            axes.text(
                value + 0.01 * longest, place, f"{_short(value)} ms   {_short(rate)} images/s",
                va="center", color=GRAY, fontsize=8,
            )  # fmt: skip
            if name == "step" and place:
                axes.axhline(place - 0.5, color="#bbbbbb", linewidth=0.7)
        axes.set_yticks(range(len(names)), [_LABELS.get(name, name) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.45 * longest)
        axes.set_xlabel(f"milliseconds for a batch of {batch}")
        axes.grid(axis="y", visible=False)
        mixture = " + ".join(
            [settings["IM_type"]] * settings["IM"] + ["Un-Mix"] * settings["unmix"]
        )
        where = measured["hardware"].get("gpu") or measured["hardware"]["cpu"]
        axes.set_title(
            f"{run_label(settings['method'], mixture or 'none')}, {settings['backbone']}, "
            f"{settings['size']} px, {measured['hardware']['precision']}, {where}\n"
            f"outside the model {measured['outside_model_share']:.1%}, model at "
            f"{measured['model_share_of_matmul_rate']:.0%} of the speed of a matrix product",
            loc="left",
        )
    return figure


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
