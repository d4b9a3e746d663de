"""The functions behind the figures of `unmix plot`, by name."""

from __future__ import annotations

from collections.abc import Callable

from unmix.commands.plots import curves
from unmix.commands.plots.attention import attention
from unmix.commands.plots.confusion import confusion
from unmix.commands.plots.drawn import Drawn, Request
from unmix.commands.plots.embedded import tsne, umap
from unmix.commands.plots.neighbors import neighbors
from unmix.commands.plots.patches import patches
from unmix.commands.plots.predictions import predicted
from unmix.commands.plots.softmax import softmax
from unmix.commands.plots.views import views
from unmix.commands.plots.weights import weights

__all__ = ["DRAW"]

DRAW: dict[str, Callable[[Request], Drawn]] = {
    "accuracy": curves.accuracy,
    "loss": curves.loss,
    "knn": curves.knn,
    "predictions": predicted,
    "softmax": softmax,
    "tsne": tsne,
    "umap": umap,
    "weights": weights,
    "neighbors": neighbors,
    "attention": attention,
    "patches": patches,
    "views": views,
    "confusion": confusion,
}
"""What each figure of `unmix.config.figures.FIGURES` is drawn by."""
