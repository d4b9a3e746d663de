"""I-JEPA's masks: blocks to predict, and a context without them (Assran et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unmix.errors import UserError
from unmix.randomness import uniform

__all__ = ["MultiBlock", "MultiBlockMasks", "block_sides"]

_ATTEMPTS = 20
Range = tuple[float, float]


class MultiBlockMasks(NamedTuple):
    """Which patches of n images are seen, and which are predicted, counted row by row.

    Attributes:
        context: int64 (n, T), in any order.
        targets: Of each block, int64 (n, blocks, S); blocks may overlap each other.
    """

    context: Tensor
    targets: Tensor


class MultiBlock(NamedTuple):
    """How blocks are drawn.

    Attributes:
        blocks: Number of target blocks of an image.
        target_scale: Smallest and largest share of the patches in one.
        target_aspect: Smallest and largest ratio of its height to its width.
        context_scale: Smallest and largest share of the patches in the context block, a square.
        min_keep: Patches of the context, without those of targets, are more than these.
    """

    blocks: int
    target_scale: Range
    target_aspect: Range
    context_scale: Range
    min_keep: int

    def check(self, grid: tuple[int, int], owner: str) -> None:
        """Raise a UserError unless every image of such a grid has a context and targets."""
        low, high = self.target_aspect
        height = block_sides(self.target_scale[1], high, grid)[0]
        width = block_sides(self.target_scale[1], low, grid)[1]
        rows, columns = block_sides(self.context_scale[0], 1.0, grid)
        left = rows * columns - height * width
        if min(grid) > 1 and left > self.min_keep:
            return
        count, low = grid[0] * grid[1], self.context_scale[0]
        raise UserError(
            f"a context of {low:g} of the {count} patches may have {max(left, 0)} beside a "
            f"target of {self.target_scale[1]:g}, and needs more than `min_keep={self.min_keep}`; "
            "use smaller patches, smaller targets, or a smaller `min_keep`.",
            parameter="context_scale_min",
            owner=owner,
        )

    def draw(
        self, n: int, grid: tuple[int, int], sizes: torch.Generator, places: torch.Generator
    ) -> MultiBlockMasks:
        """Draw the masks of n images: sizes once for all, places for each block of each image.

        As released, one number says how large and how tall targets are: the largest are the
        tallest. An image whose context is too small gets other places; after 20 attempts its
        targets share one place. Contexts are cut to the smallest of the batch, at random.

        Args:
            n: Number of images.
            grid: Rows and columns of their patches, as of `check`.
            sizes: Of the sides of blocks.
            places: Of everything else.
        """
        share, seen = uniform((2,), sizes).numpy().tolist()
        ratio = _within(share, self.target_aspect)
        target = block_sides(_within(share, self.target_scale), ratio, grid)
        context = block_sides(_within(seen, self.context_scale), 1.0, grid)
        covered, visible = self._placed(n, target, context, grid, places)
        for attempt in range(_ATTEMPTS):
            small = visible.sum(dim=(1, 2)) <= self.min_keep
            if not small.numpy().any():
                break
            last = attempt == _ATTEMPTS - 1
            new, inside = self._placed(n, target, context, grid, places, one_place=last)
            covered = torch.where(small[:, None, None, None], new, covered)
            visible = torch.where(small[:, None, None], inside, visible)
        noise = uniform((n, grid[0] * grid[1]), places)
        order = (noise + ~visible.flatten(1)).argsort(dim=1)
        kept = order[:, : visible.sum(dim=(1, 2)).numpy().min()]
        numbers = torch.from_numpy(covered.flatten(2).numpy().nonzero()[2])
        return MultiBlockMasks(kept, numbers.reshape(n, self.blocks, target[0] * target[1]))

    def _placed(
        self,
        n: int,
        target: tuple[int, int],
        context: tuple[int, int],
        grid: tuple[int, int],
        places: torch.Generator,
        one_place: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Target blocks, bool (n, blocks, rows, columns), and what a context block has beside."""
        targets = _blocks(n, self.blocks, target, grid, places)
        if one_place:
            targets = targets[:, :1].expand_as(targets)
        seen = _blocks(n, 1, context, grid, places)[:, 0]
        return targets, seen & ~targets.any(dim=1)


def block_sides(share: float, aspect: float, grid: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a block with a share of the patches, less than all of either.

    As released: the sides of the area, rounded, where the area is rounded down.
    """
    area = int(grid[0] * grid[1] * share)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return max(1, min(height, grid[0] - 1)), max(1, min(width, grid[1] - 1))


def _within(u: float, limits: Range) -> float:
    return limits[0] + u * (limits[1] - limits[0])


def _blocks(
    n: int, count: int, sides: tuple[int, int], grid: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Blocks anywhere, bool (n, count, rows, columns)."""
    (height, width), (rows, columns) = sides, grid
    down, right = uniform((2, n, count), generator)
    top = (down * (rows - height + 1)).long()[..., None, None]
    left = (right * (columns - width + 1)).long()[..., None, None]
    row, column = (torch.arange(side, device="cpu") for side in grid)
    row = row[:, None]
    return (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
