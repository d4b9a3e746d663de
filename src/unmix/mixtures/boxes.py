"""The box that a region mixture pastes, and the mask of a box."""

from __future__ import annotations

import torch
from torch import Tensor

from unmix.errors import UserError

__all__ = [
    "aligned_boxes",
    "box_area",
    "box_mask",
    "clipped_boxes",
    "nearest_indices",
    "resized_boxes",
    "upsample_nearest",
    "whole_cells",
]


def clipped_boxes(ratio: Tensor, center: Tensor, height: int, width: int) -> Tensor:
    """The boxes to paste, clipped to the image.

    Args:
        ratio: lambda in [0, 1], shape (N,); before clipping the box covers about 1 - lambda.
        center: Row and column of the centers, int64 (N, 2).
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        int64 (N, 4): top, left, bottom, right; bottom and right are exclusive. A side is
        `2 * (s // 2)` with `s = floor(side * sqrt(1 - lambda))`, so odd sides lose a pixel, as
        published (Shen et al. 2020, 2022, released code).
    """
    root = (1.0 - ratio.double()).sqrt()
    size = torch.tensor([height, width], device="cpu")
    half = (root[:, None] * size).long() // 2
    low = (center - half).clamp(min=0).minimum(size)
    high = (center + half).clamp(min=0).minimum(size)
    return torch.cat([low, high], dim=1)


def box_area(box: Tensor) -> Tensor:
    """Number of pixels in each box of an int64 (..., 4) tensor."""
    return (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])


def box_mask(box: Tensor, height: int, width: int) -> Tensor:
    """True inside each box: bool (N, 1, H, W) from int64 (N, 4), on the boxes' device."""
    rows = torch.arange(height, device=box.device)
    columns = torch.arange(width, device=box.device)
    top, left, bottom, right = box[:, :, None].unbind(1)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return (in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1)


def resized_boxes(box: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """The same boxes in images of another size, int64 (..., 4); edges are rounded to pixels.

    Args:
        box: top, left, bottom, right, int64 (..., 4).
        old: Height and width of the images that the boxes are for.
        new: Height and width of the others.
    """
    before = torch.tensor([*old, *old], device=box.device)
    after = torch.tensor([*new, *new], device=box.device)
    return (2 * box * after + before) // (2 * before)


def aligned_boxes(box: Tensor, height: int, width: int, side: int) -> Tensor:
    """Boxes whose edges are rounded to those of cells, int64 (..., 4).

    Args:
        box: top, left, bottom, right, int64 (..., 4).
        height: Rows of the image.
        width: Columns of the image.
        side: Of a cell, in pixels.

    Raises:
        UserError: if the cells do not fill the image.
    """
    return side * resized_boxes(box, (height, width), whole_cells(height, width, side))


def whole_cells(height: int, width: int, side: int) -> tuple[int, int]:
    """Rows and columns of the cells that fill an image.

    Raises:
        UserError: if they do not.
    """
    if height % side or width % side:
        raise UserError(
            f"cells of {side} pixels do not fill images of {height} x {width}; use a divisor of "
            "the sides.",
            parameter="align",
        )
    return height // side, width // side


def nearest_indices(old: int, new: int) -> Tensor:
    """For each of `new` positions along a side, the nearest of its `old` ones: int64 (new,)."""
    return ((2 * torch.arange(new, device="cpu") + 1) * old).div(2 * new, rounding_mode="floor")


def upsample_nearest(cells: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Cells (M, r, c) as pixels (M, H, W), by the cell index of each row and each column."""
    # Columns first: rows are copied whole then, which takes a hundredth of the time.
    return cells.index_select(2, columns).index_select(1, rows)
