"""Masks of patches for masked self-distillation (Zhou et al. 2021, iBOT; Oquab et al. 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unmix.distributed import rank, world_size
from unmix.errors import UserError, check_choice, check_number
from unmix.methods.base import Progress
from unmix.randomness import generator_for, uniform

__all__ = ["PatchMasks", "block_masks", "counts_of_masks", "places_of", "random_masks"]

_ATTEMPTS = 32


class PatchMasks:
    """The masks of a run's large views: new at each step, and the same for all calls within one.

    Args:
        kind: "block", rectangles of patches, or "random", patches anywhere.
        share: Share of the views that are masked, in (0, 1].
        ratios: Smallest and largest share of their patches, in (0, 1).
        owner: The method, for messages.

    Raises:
        UserError: if a number is out of range.
    """

    def __init__(self, kind: str, share: float, ratios: tuple[float, float], owner: str) -> None:
        low, high = ratios
        check_choice("masks", kind, ("block", "random"))
        check_number("mask_share", share, above=0, at_most=1, owner=owner)
        check_number("mask_ratio_max", high, above=0, below=1, owner=owner)
        check_number("mask_ratio_min", low, above=0, at_most=high, owner=owner)
        self.masks_of = block_masks if kind == "block" else random_masks
        self.share, self.ratios, self.owner = share, ratios, owner
        self.place: tuple[int, ...] = (0,)
        self.seed = 0

    def begin_step(self, progress: Progress) -> None:
        """Masks are drawn anew, for each process."""
        self.seed, self.place = progress.seed, (progress.step,)

    def begin_part(self, part: int) -> None:
        """Likewise for each part of a step."""
        self.place = (self.place[0], part)

    def check(self, grid: tuple[int, int]) -> None:
        """Raise a UserError if a mask of such a grid would have no patch, or all of them."""
        count, (low, high) = grid[0] * grid[1], self.ratios
        if int(count * high) < 1 or math.ceil(count * low) >= count:
            what = "mask none" if int(count * high) < 1 else "leave none"
            raise UserError(
                f"{low:g} to {high:g} would {what} of the {count} patches of an image; use smaller "
                f"patches, or ratios between {1 / count:.3g} and {1 - 1 / count:.3g}.",
                parameter="mask_ratio_max" if int(count * high) < 1 else "mask_ratio_min",
                owner=self.owner,
            )

    def draw(self, n: int, number: int, grid: tuple[int, int]) -> Tensor:
        """The masks of n images of view `number`, bool (n, rows, columns), on the CPU."""
        own = () if world_size() == 1 else (rank(),)
        generator = generator_for(self.seed, "masks", *self.place, number, *own)
        self.check(grid)
        counts = counts_of_masks(n, grid[0] * grid[1], self.share, self.ratios, generator)
        return self.masks_of(counts, grid, generator)


def counts_of_masks(
    n: int, patches: int, share: float, ratios: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """How many patches of each image are masked, int64 (n,), in a random order of the images.

    `share` of the images are masked, at least one; their ratios are spread evenly over the range,
    and of a masked image at least one patch is masked and one is left.
    """
    masked = min(n, max(1, round(n * share)))
    low, high = ratios
    place = torch.arange(masked, device="cpu") + uniform((masked,), generator)
    spread = low + (high - low) * place / masked
    counts = torch.zeros(n, dtype=torch.int64, device="cpu")
    counts[:masked] = (patches * spread).long().clamp(1, patches - 1)
    return counts[torch.randperm(n, generator=generator, device="cpu")]


def random_masks(counts: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """So many patches of each image anywhere, bool (n, rows, columns)."""
    none = torch.zeros(len(counts), *grid, dtype=torch.bool, device="cpu")
    return _filled(none, counts, generator)


def block_masks(counts: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """So many patches of each image in rectangles, bool (n, rows, columns).

    Rectangles of 4 patches or more, whose sides are up to .3 to 1 / .3 to each other, are added
    while they fit in what is to be masked, as released; what is missing then is masked anywhere.
    """
    rows, columns = grid
    masks = torch.zeros(len(counts), rows, columns, dtype=torch.bool, device="cpu")
    row, column = (torch.arange(side, device="cpu") for side in grid)
    row = row[:, None]
    for _ in range(_ATTEMPTS):
        left = counts - masks.sum(dim=(1, 2))
        area, aspect, down, right = uniform((4, len(counts)), generator)
        low = left.clamp(max=4)
        size = low + area * (left - low)
        log_aspect = (2 * aspect - 1) * -math.log(0.3)
        height = (size * log_aspect.exp()).sqrt().round().long()
        width = (size / log_aspect.exp()).sqrt().round().long()
        fits = (height < rows) & (width < columns)
        top = (down * (rows - height + 1)).long()[:, None, None]
        start = (right * (columns - width + 1)).long()[:, None, None]
        inside = (row >= top) & (row < top + height[:, None, None])
        inside = inside & (column >= start) & (column < start + width[:, None, None])
        new = (inside & ~masks).sum(dim=(1, 2))
        masks |= inside & (fits & (new > 0) & (new <= left))[:, None, None]
    return _filled(masks, counts, generator)


def _filled(masks: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Masks with further patches, so that each has its count."""
    flat = masks.flatten(1)
    order = (uniform(tuple(flat.shape), generator) + flat).argsort(dim=1, descending=True)
    rank = order.argsort(dim=1)
    return (rank < counts[:, None]).reshape(masks.shape)


def places_of(masks: Tensor) -> Tensor:
    """The numbers of the masked patches, counted over the batch, int64 (M,), on the CPU."""
    return torch.from_numpy(masks.flatten().numpy().nonzero()[0])
