"""MixMask: an image keeps some blocks of a coarse grid, and the rest is its partner's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import torch
from torch import Tensor

from unmix.mixtures.boxes import upsample_nearest
from unmix.mixtures.draws import MaskDraw, MixtureDraw
from unmix.mixtures.fields import parameter
from unmix.mixtures.grid import cell_of_each
from unmix.mixtures.operators import PER, PairOperator, Per
from unmix.mixtures.sampling import PAIRINGS, Pairing, Weight, checked_shape
from unmix.randomness import device_of

__all__ = ["MixMask", "block_mask"]

_SHARE = 0.5
_LEAST_AREA, _LEAST_ASPECT, _ATTEMPTS = 4, 0.3, 10


@dataclass(frozen=True)
class MixMask(PairOperator):
    """Blocks of cells of a grid stay the image's own, and all other cells are the partner's.

    Blocks are drawn until about half the cells, or lambda of them, are covered; the share is that
    of the pixels, counted. Source: Vishniakov, Xing and Shen 2024 (arXiv 2210.11456) and released
    code: its block masks, its grid of 8 x 8, one mask for a batch and the batch in reverse. Its
    "asymmetric" loss, in which only the query is masked, and which is shared by the mask's area
    between both images, is the one of Un-Mix.

    Args:
        cells: Cells along each side; at least 3.
        weight: The distribution of lambda; None for 0.5, as released.
        per: One mask for a `batch`, or for each `sample`.
        pairing: See `unmix.mixtures.sampling.partners`.
        align: Side in pixels of patches, which no cell cuts; None for any pixel.

    Raises:
        UserError: if a number is out of its range, or a string is none of its choices.
    """

    by_region: ClassVar[bool] = True

    one_draw = "one mask"
    cells: int = parameter(8, setting="unmix_patch", at_least=3)
    weight: Weight | None = None
    per: Per = parameter("batch", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("reverse", setting="unmix_pairing", choices=PAIRINGS)
    align: int | None = parameter(None, setting="unmix_align", at_least=1)

    def describe_mixing(self) -> str:
        """The grid, and the distribution of lambda."""
        return f"blocks of {self.cells} x {self.cells} cells; {self.weight or f'{_SHARE:g} kept'}"

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
        rows, columns = cell_of_each(height, width, self.cells, self.align, "MixMask")
        m = self._times(n)
        lam = (
            self.weight.draw(m, generator)
            if self.weight
            else torch.full((m,), _SHARE, device="cpu", dtype=torch.float32)
        )
        device = device_of(generator)
        # Random's numbers are the same in every version of Python, and those of the released code.
        seed = torch.randint(2**63 - 1, (), generator=generator, device=device).item()
        random = Random(int(seed))
        own = torch.stack(
            [block_mask(self.cells, int(share * self.cells**2), random) for share in lam.tolist()]
        )
        mask = ~upsample_nearest(own, rows, columns)
        return self._credited(MaskDraw(self._partner(n, generator, features), mask, n))


def block_mask(cells: int, count: int, random: Random) -> Tensor:
    """Blocks of a grid that cover at most `count` cells, and most often that many: bool (c, c).

    A block has 4 cells or more while there is room for them, and an aspect ratio between 0.3 and
    its inverse; blocks may overlap. It ends when ten blocks in a row do not fit. As BEiT's masks
    (Bao et al. 2022), which MixMask's code takes.

    Args:
        cells: Along a side.
        count: Cells to cover.
        random: Of the numbers; seeded alike, the masks are those of the released code.
    """
    mask = torch.zeros(cells, cells, dtype=torch.bool, device="cpu")
    covered = 0
    while covered < count:
        block = _fitting_block(mask, count - covered, random)
        if block is None:
            break
        mask[block] = True
        covered = int(mask.sum())
    return mask


def _fitting_block(mask: Tensor, most: int, random: Random) -> tuple[slice, slice] | None:
    """A random block that adds 1 to `most` cells to a mask; None if ten do not."""
    cells = len(mask)
    limit = math.log(1 / _LEAST_ASPECT)
    for _ in range(_ATTEMPTS):
        area = random.uniform(_LEAST_AREA, most)
        aspect = math.exp(random.uniform(-limit, limit))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h >= cells or w >= cells:
            continue
        top, left = random.randint(0, cells - h), random.randint(0, cells - w)
        block = slice(top, top + h), slice(left, left + w)
        if 0 < h * w - int(mask[block].sum()) <= most:
            return block
    return None
