"""How much of each cell of a grid, such as a transformer's tokens, a box or a mask covers.

Pixels are counted in units of a cell's fraction, so that what covers a cell covers exactly 1 of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_every_position", "box_coverage", "mask_coverage"]


def at_every_position(shares: Tensor, rows: int, columns: int) -> Tensor:
    """Shares (M, k) that are the same in every cell: (M, k, rows, columns)."""
    return shares[:, :, None, None].expand(-1, -1, rows, columns)


def box_coverage(box: Tensor, size: tuple[int, int], rows: int, columns: int) -> Tensor:
    """The share of each cell's pixels that are in a box.

    Args:
        box: top, left, bottom, right, int64 (M, 4); bottom and right are exclusive.
        size: Height and width of the images.
        rows: Rows of the grid, which divides the image evenly.
        columns: Columns of the grid.

    Returns:
        float32 (M, rows, columns), in [0, 1].
    """
    height, width = size
    in_rows = _overlap(box[:, 0, None], box[:, 2, None], height, rows)
    in_columns = _overlap(box[:, 1, None], box[:, 3, None], width, columns)
    return in_rows[:, :, None] * in_columns[:, None, :] / (height * width)


def mask_coverage(mask: Tensor, rows: int, columns: int) -> Tensor:
    """The share of each cell's pixels that are True in a mask (M, H, W), or its mean if float.

    Returns:
        float32 (M, rows, columns), in [0, 1].
    """
    height, width = mask.shape[1:]
    down, across = (
        _overlap(place[:, None], place[:, None] + 1, len(place), cells)
        for place, cells in zip(
            (torch.arange(side, device=mask.device) for side in (height, width)),
            (rows, columns),
            strict=True,
        )
    )
    return down.T @ mask.float() @ across / (height * width)


def _overlap(start: Tensor, end: Tensor, side: int, cells: int) -> Tensor:
    """How much of [start, end) lies in each cell, where a cell is `side` long: float (..., cells).

    In units of a cell's fraction of a pixel, so that it is a whole number.
    """
    first = torch.arange(cells, device=start.device) * side
    low = torch.maximum(start * cells, first)
    high = torch.minimum(end * cells, first + side)
    return (high - low).clamp(min=0).float()
