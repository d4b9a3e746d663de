"""Masks of patches for masked self-distillation (Zhou et al. 2021, iBOT; Oquab et al. 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unmix.randomness import uniform

__all__ = ["block_masks", "counts_of_masks", "places_of", "random_masks"]

_ATTEMPTS = 32


def counts_of_masks(
    n: int, patches: int, share: float, ratios: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """How many patches of each image are masked, int64 (n,), in a random order of the images.

    `share` of the images are masked, at least one; their ratios are spread evenly over the range,
    and of a masked image at least one patch is masked and one is left.
    """
    masked = min(n, max(1, round(n * share)))
    low, high = ratios
    spread = low + (high - low) * (torch.arange(masked) + uniform((masked,), generator)) / masked
    counts = torch.zeros(n, dtype=torch.int64)
    counts[:masked] = (patches * spread).long().clamp(1, patches - 1)
    return counts[torch.randperm(n, generator=generator)]


def random_masks(counts: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """So many patches of each image anywhere, bool (n, rows, columns)."""
    none = torch.zeros(len(counts), *grid, dtype=torch.bool)
    return _filled(none, counts, generator)


def block_masks(counts: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """So many patches of each image in rectangles, bool (n, rows, columns).

    Rectangles of 4 patches or more, whose sides are up to .3 to 1 / .3 to each other, are added
    while they fit in what is to be masked, as released; what is missing then is masked anywhere.
    """
    rows, columns = grid
    masks = torch.zeros(len(counts), rows, columns, dtype=torch.bool)
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
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
