"""GridMix: the cells of a grid are one image's or the other's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmix.errors import UserError
from unmix.mixtures.boxes import upsample_nearest, whole_cells
from unmix.mixtures.draws import MaskDraw, MixtureDraw
from unmix.mixtures.fields import parameter
from unmix.mixtures.operators import PER, PairOperator, Per
from unmix.mixtures.sampling import PAIRINGS, Pairing, Weight, checked_shape
from unmix.randomness import uniform

__all__ = ["GridMix", "cell_of_each"]


@dataclass(frozen=True)
class GridMix(PairOperator):
    """A random subset of the cells of a grid comes from the partner.

    Of the n x n cells, round((1 - lambda) n^2) are the partner's, and the share is that of the
    pixels, counted. Source: Baek et al. 2021 (Pattern Recognition 109, 107594), the mixing; the
    paper's second loss, on the labels of single cells, needs labels and is not here.

    Args:
        cells: n, cells along a side; at least 2. Where n does not divide the side of an image, its
            cells differ by a pixel.
        weight: The distribution of lambda.
        per: One grid per `batch`, or per `sample`.
        pairing: See `unmix.mixtures.sampling.partners`.
        align: Side in pixels of smaller cells, which are not cut; None for any pixel.

    Raises:
        UserError: if a number is out of its range, or a string is none of its choices.
    """

    by_region: ClassVar[bool] = True

    one_draw = "one grid"
    cells: int = parameter(4, setting="unmix_patch", at_least=2)
    weight: Weight = Weight()  # noqa: RUF009 - frozen
    per: Per = parameter("batch", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("reverse", setting="unmix_pairing", choices=PAIRINGS)
    align: int | None = parameter(None, setting="unmix_align", at_least=1)

    def describe_mixing(self) -> str:
        """The grid, and the distribution of lambda."""
        return f"{self.cells} x {self.cells} cells; {self.weight}"

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for a batch of shape (N, C, H, W); features (N, D) for nearest neighbors.

        Raises:
            UserError: if a cell would have no pixel.
        """
        n, height, width = checked_shape(shape)
        rows, columns = cell_of_each(height, width, self.cells, self.align, "GridMix")
        m, count = self._times(n), self.cells**2
        lam = self.weight.draw(m, generator)
        pasted = ((1 - lam) * count).round().long()
        rank = uniform((m, count), generator).cpu().argsort(dim=1).argsort(dim=1)
        cells = (rank < pasted[:, None]).unflatten(1, (self.cells, self.cells))
        mask = upsample_nearest(cells, rows, columns)
        return self._credited(MaskDraw(self._partner(n, generator, features), mask, n))


def cell_of_each(
    height: int, width: int, cells: int, align: int | None, owner: str
) -> tuple[Tensor, Tensor]:
    """The cell of each row and of each column of an image, int64 (H,) and (W,).

    Args:
        height: Rows of the image.
        width: Columns of the image.
        cells: Of the grid, along a side.
        align: Side of patches that no cell cuts; None for pixels.
        owner: Of the grid, for the message.

    Raises:
        UserError: if a cell would have no pixel.
    """
    step = align or 1
    sides = whole_cells(height, width, step)
    if min(sides) < cells:
        what = "pixels" if step == 1 else f"patches of {step} pixels"
        raise UserError(
            f"a grid of {cells} x {cells} cells needs images of at least as many {what}, not "
            f"{sides[0]} x {sides[1]}; use a smaller `cells`, or another `mixture`.",
            parameter="size",
            owner=owner,
        )
    rows, columns = (
        (torch.arange(side, device="cpu") * cells // side).repeat_interleave(step) for side in sides
    )
    return rows, columns
