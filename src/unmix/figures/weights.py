"""Histograms of the weights of layers (Figure 5 of Un-Mix)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from unmix.errors import UserError, check_number
from unmix.figures.colors import PALETTE
from unmix.figures.looks import Look, looks_of
from unmix.figures.style import legend_columns, shorten, soft_ink, style
from unmix.figures.widths import inches, write_caption

__all__ = ["BEFORE", "binned", "weight_histograms"]

BEFORE = "before training"
_FEWEST, _MOST = 15, 61
# Of the weights: rare large ones would squeeze the rest into a few bins.
_INSIDE = 0.999


def binned(
    layers: Mapping[str, Mapping[str, ArrayLike]], bins: int | None = None
) -> dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]:
    """For each layer the edges of common bins, and each model's density in them.

    The bins are symmetric about 0 and hold the middle 99.9 % of every model's weights.

    Args:
        layers: For each layer's name, each model's weights, of any shape.
        bins: Number of bins; by default twice the cube root of the number of weights (the Rice
            rule), 15 to 61.

    Raises:
        UserError: if a layer has no finite weight.
    """
    if bins is not None:
        check_number("bins", bins, at_least=2)
    found = {}
    for layer, models in layers.items():
        flat = {name: np.asarray(values, dtype=float).ravel() for name, values in models.items()}
        if not flat or any(not len(v) or not np.isfinite(v).all() for v in flat.values()):
            raise UserError(f"weights: {layer} has no weights, or some that are not finite.")
        reach = max(float(np.quantile(np.abs(values), _INSIDE)) for values in flat.values())
        least = min(map(len, flat.values()))
        count = bins or int(np.clip(2 * least ** (1 / 3), _FEWEST, _MOST))
        edges = np.linspace(-(reach or 1.0), reach or 1.0, count + 1)
        width = edges[1] - edges[0]
        density = {n: np.histogram(v, edges)[0] / (len(v) * width) for n, v in flat.items()}
        found[layer] = (edges, density)
    return found


def weight_histograms(
    layers: Mapping[str, Mapping[str, ArrayLike]],
    looks: Mapping[str, Look] | None = None,
    *,
    caption: str = "",
    width: str | float = "page",
    theme: str = "light",
) -> Figure:
    """Draw the distribution of each layer's weights for each model, with standard deviations.

    A model named "before training" is drawn as a gray area. (Shen et al. 2022, Un-Mix, Figure 5.)

    Args:
        layers: For each layer's name, each model's weights, of any shape.
        looks: How each model is drawn; by default chosen here.
        caption: Text below.
        width: "column", "page", or inches.
        theme: light, dark or inline.

    Raises:
        UserError: if there is no layer, or one has no finite weight.
    """
    found = binned(layers)
    if not found:
        raise UserError("weight_histograms: give at least one layer.")
    names = list(dict.fromkeys(name for models in layers.values() for name in models))
    lines = looks or _plain_looks([name for name in names if name != BEFORE])
    across = inches(width)
    columns = min(len(found), 2 if across < 5 else 3)
    rows = -(-len(found) // columns)
    words = [shorten(name, 48) for name in names]
    across_legend = min(legend_columns(words, across, 7, 4.8), len(words))
    above = 0.14 * -(-len(words) // across_legend)
    with rc_context(style(theme)):
        figure = Figure(figsize=(across, 1.55 * rows + 0.5 + above), layout="constrained")
        cells = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, (layer, (edges, density)) in zip(cells, found.items(), strict=False):
            notes = []
            for name, values in density.items():
                spread = float(np.std(np.asarray(layers[layer][name], dtype=float)))
                notes.append(f"{spread:.3f}")
                if name == BEFORE:
                    axes.stairs(values, edges, fill=True, color=soft_ink(), alpha=0.28)
                    continue
                look = lines[name]
                middle = (edges[1:] + edges[:-1]) / 2
                axes.plot(middle, values, linewidth=1.2, **_line(look))
            axes.set_title(shorten(layer, 30), fontsize=8, loc="left")
            axes.text(
                0.98, 0.97, "std\n" + "\n".join(notes), transform=axes.transAxes, ha="right",
                va="top", fontsize=6, color=soft_ink(), linespacing=1.15,
            )  # fmt: skip
            # The numbers are above what is drawn at their place.
            below = max(float(v[3 * len(v) // 4 :].max()) for v in density.values())
            free = max(0.3, 1 - 0.1 * (1 + len(notes)))
            axes.set_ylim(0, max(axes.get_ylim()[1], below / free))
            axes.set_xlim(edges[0], edges[-1])
            axes.locator_params(nbins=4)
            axes.tick_params(labelsize=6.5)
        for axes in cells[len(found) :]:
            axes.set_axis_off()
        for axes in figure.axes[:: columns or 1]:
            axes.set_ylabel("density", fontsize=7)
        handles = [_handle(name, word, lines) for name, word in zip(names, words, strict=True)]
        figure.legend(
            handles=handles, loc="outside upper left", ncols=across_legend, frameon=False,
            fontsize=7,
        )  # fmt: skip
        write_caption(figure, caption)
        return figure


def _plain_looks(names: list[str]) -> dict[str, Look]:
    return looks_of(
        {name: ("", "none" if place == 0 else name) for place, name in enumerate(names)}
    )


def _handle(name: str, word: str, lines: Mapping[str, Look]) -> Line2D:
    if name == BEFORE:
        return Line2D([], [], color=soft_ink(), alpha=0.35, linewidth=5, label=word)
    look = lines[name]
    return Line2D([], [], linewidth=1.4, label=word, **_line(look))


def _line(look: Look) -> dict[str, Any]:
    """Color and dash; gray would not be seen on the gray of the weights before training."""
    color = rcParams["text.color"] if look.color == PALETTE[0] else look.color
    return {"color": color, "linestyle": look.dash}
