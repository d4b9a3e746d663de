"""The weights that a run starts from, beside random ones."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from torch import nn

from unmix.config import ModelSettings
from unmix.weights import Loaded, Weights, open_weights

__all__ = ["Start", "start_of"]

_NEAR = 0.02


class Start:
    """Weights to start from, and what became of them.

    Args:
        weights: Opened.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.loaded: Loaded | None = None

    def load(self, backbone: nn.Module) -> None:
        """Copy them into a backbone.

        Raises:
            UserError: if they are of another network.
        """
        self.loaded = self.weights.load(backbone)

    def notes(self, mean: Sequence[float], std: Sequence[float]) -> tuple[str, ...]:
        """What was loaded, and whether the images are normalized in another way than theirs were.

        Args:
            mean: RGB mean by which the views are normalized.
            std: Standard deviation, likewise.
        """
        assert self.loaded is not None
        found = [self.loaded.line(self.weights.name)]
        if self.weights.is_run:
            found.append(
                "note: of a run its encoder alone is taken; heads, queues and optimizer start "
                "anew. To go on with all of it: unmix pretrain --run "
                f"{shlex.quote(self.weights.name)} --epochs N --extend"
            )
        theirs = self.weights.preparation
        if theirs is None:
            return tuple(found)
        pairs = zip((*theirs.mean, *theirs.std), (*mean, *std), strict=True)
        if not all(abs(a - b) < _NEAR for a, b in pairs):
            words = (" ".join(f"{x:.4g}" for x in each) for each in (theirs.mean, theirs.std))
            found.append(
                "note: these weights were trained on images normalized by other numbers than the "
                "views are; to use theirs, add --mean {} --std {}".format(*words)
            )
        return tuple(found)


def start_of(model: ModelSettings) -> Start | None:
    """The weights that a run starts from; None for random ones.

    Raises:
        UserError: if they cannot be opened, or are not those of an earlier start of the run.
    """
    if model.init is None:
        return None
    return Start(open_weights(model.init, model.init_sha256))
