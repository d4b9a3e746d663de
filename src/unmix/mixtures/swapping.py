"""RegionCL's swapping: a box of whole cells comes from the partner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmix.mixtures.draws import MixtureDraw, PairDraw
from unmix.mixtures.fields import parameter
from unmix.mixtures.operators import PER, PairOperator, Per
from unmix.mixtures.sampling import PAIRINGS, Pairing, checked_shape
from unmix.randomness import uniform

__all__ = ["RegionSwap"]


@dataclass(frozen=True)
class RegionSwap(PairOperator):
    """A box whose sides are 3/7 to 5/7 of the image's, in whole cells of a grid, is the partner's.

    Its sides are uniform over 3, 4 and 5 of the 7 cells that a ResNet's last feature map has at 224
    pixels, and its corner is the nearest cell's to a uniform pixel, so that features of box and
    canvas can be pooled apart. Source: Xu et al. 2022 (ECCV, RegionCL), Sec. 3.2 and released code,
    whose boxes at the right and lower edge are one pixel off their cells.

    Args:
        cells: Along a side of the image; at least 2, by default 7 if that divides its sides, else
            4. Where it does not divide them, cells differ by a pixel.
        per: One box per `batch`, or per `sample`.
        pairing: See `unmix.mixtures.sampling.partners`.

    Raises:
        UserError: if a number is out of its range, or a string is none of its choices.
    """

    by_region: ClassVar[bool] = True

    one_draw = "one box"
    cells: int | None = parameter(None, at_least=2)
    per: Per = parameter("batch", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("reverse", setting="unmix_pairing", choices=PAIRINGS)

    def describe_mixing(self) -> str:
        """The box."""
        cells = "7 or 4" if self.cells is None else self.cells
        return f"a box of 3/7 to 5/7 of both sides, in whole cells of {cells} per side"

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for a batch of shape (N, C, H, W); features (N, D) for nearest neighbors."""
        n, height, width = checked_shape(shape, region=True)
        cells = self.cells or (4 if height % 7 or width % 7 else 7)
        m = self._times(n)
        starts, ends = [], []
        for side in (height, width):
            count = min(cells, side)
            low = max(1, round(count * 3 / 7))
            high = max(low, min(count - 1, round(count * 5 / 7)))
            length = low + (uniform((m,), generator).cpu() * (high - low + 1)).long()
            length = length.clamp(max=high)
            corner = (uniform((m,), generator).cpu() * count).round().long()
            corner = torch.minimum(corner, count - length)
            starts.append(corner * side // count)
            ends.append((corner + length) * side // count)
        box = torch.stack([*starts, *ends], dim=1)
        partner = self._partner(n, generator, features)
        ratio = torch.zeros(len(partner), device="cpu", dtype=torch.float32)
        return self._credited(
            PairDraw(
                partner, box.expand(len(partner), 4), ratio, (height, width),
                per_sample=self.per == "sample", batch=n,
            )
        )  # fmt: skip
