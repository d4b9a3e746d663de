"""What mixtures look like: own image, partner and mixture of a few samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from unmix.errors import UserError
from unmix.figures.style import GREY, STYLE

__all__ = ["mixtures"]

_ROWS = ("own image", "partner", "mixture")
_ACROSS = 8


@rc_context(STYLE)
def mixtures(
    own: ArrayLike,
    partner: ArrayLike,
    mixed: ArrayLike,
    weights: Sequence[float] | ArrayLike,
    boxes: ArrayLike | None = None,
    *,
    title: str = "",
) -> Figure:
    """Draw samples as columns: own image, partner, mixture with its weight and box.

    Args:
        own: uint8 `(N, 3, H, W)`, the images before mixing.
        partner: The same for their partners.
        mixed: The same after mixing.
        weights: `(N,)`, the own image's share of each mixture, in [0, 1].
        boxes: `(N, 4)`, pixels `top, left, bottom, right`, the last two exclusive; an empty box
            is not drawn. None where no region was pasted.
        title: One line above all, such as the mixture's settings.

    Raises:
        UserError: if the arguments differ in their number of samples, or there is none.
    """
    stacks = [np.asarray(images) for images in (own, partner, mixed)]
    shares = np.asarray(weights, dtype=float)
    count = len(shares)
    frames = np.zeros((count, 4), dtype=int) if boxes is None else np.asarray(boxes)
    lengths = [*(len(stack) for stack in stacks), count, len(frames)]
    if len(set(lengths)) > 1 or not count:
        raise UserError(
            f"mixtures: own, partner, mixed, weights and boxes hold {lengths} samples; "
            "they must hold the same number, at least 1."
        )
    blocks, across = -(-count // _ACROSS), min(count, _ACROSS)
    size = (0.5 + 1.05 * max(across, 3), 3.45 * blocks + (0.3 if title else 0.0))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(3 * blocks, across)
    for sample in range(count):
        block, column = divmod(sample, _ACROSS)
        for row, (name, stack) in enumerate(zip(_ROWS, stacks, strict=True)):
            axes = figure.add_subplot(grid[3 * block + row, column])
            axes.imshow(stack[sample].transpose(1, 2, 0), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if column == 0:
                axes.set_ylabel(name, color=GREY)
        axes.set_title(f"weight {shares[sample]:.2f}", fontsize=8, pad=3)
        top, left, bottom, right = (float(edge) for edge in frames[sample])
        if bottom > top and right > left:
            # imshow puts the centre of pixel 0 at 0, so its edge is at -0.5.
            corner = (left - 0.5, top - 0.5)
            for color, width in (("white", 2.4), ("#CC3311", 1.2)):
                axes.add_patch(
                    Rectangle(
                        corner,
                        right - left,
                        bottom - top,
                        fill=False,
                        edgecolor=color,
                        linewidth=width,
                        clip_on=False,
                    )
                )
    if title:
        figure.suptitle(title, fontsize=9.5)
    return figure
