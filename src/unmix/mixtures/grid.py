"""GridMix: the cells of a grid are one image's or the other's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmix.errors import UserError, check_number
from unmix.mixtures.basics import checked_shape
from unmix.mixtures.boxes import stretched
from unmix.mixtures.draws import MixtureDraw
from unmix.mixtures.masks import MaskDraw
from unmix.mixtures.operators import PairOperator
from unmix.mixtures.weights import Weight
from unmix.randomness import uniform

__all__ = ["GridMix"]


@dataclass(frozen=True)
class GridMix(PairOperator):
    """A random subset of the cells of a grid comes from the partner.

    Of the n x n cells, round((1 - lambda) n^2) are the partner's, and the share is that of the
    pixels, counted. Source: Baek et al. 2021 (Pattern Recognition 109, 107594), the mixing; the
    paper's second loss, on the labels of single cells, needs labels and is not here.

    Args:
        cells: n, cells along a side; at least 2. Where n does not divide the side of an image, its
            cells differ by a pixel.
        weight: The law of lambda.
        per: One grid for a `batch`, or for each `sample`.
        pairing: See `unmix.mixtures.pairing.partners`.

    Raises:
        UserError: if a number is out of its range, or a word unknown.
    """

    cells: int = 4
    weight: Weight = Weight()  # noqa: RUF009 - frozen
    per: Literal["batch", "sample"] = "batch"
    pairing: str = "reverse"

    def __post_init__(self) -> None:
        check_number("--unmix_patch", self.cells, at_least=2)
        self._check_pairs()

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for a batch of shape (N, C, H, W); features (N, D) for pairing by neighbours.

        Raises:
            UserError: if a cell would have no pixel.
        """
        n, height, width = checked_shape(shape)
        if min(height, width) < self.cells:
            raise UserError(
                f"--size: a grid of {self.cells} x {self.cells} cells needs images of at least as "
                f"many pixels, not {height} x {width}; use a smaller "
                "--unmix_patch, or another --unmix_mixture."
            )
        m, count = self._times(n), self.cells**2
        lam = self.weight.draw(m, generator)
        pasted = ((1 - lam) * count).round().long()
        rank = uniform((m, count), generator).cpu().argsort(dim=1).argsort(dim=1)
        cells = (rank < pasted[:, None]).unflatten(1, (self.cells, self.cells))
        rows, columns = (torch.arange(side) * self.cells // side for side in (height, width))
        mask = stretched(cells, rows, columns)
        return self._credited(MaskDraw(self._partner(n, generator, features), mask, n))
