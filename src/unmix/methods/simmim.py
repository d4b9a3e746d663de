"""SimMIM: a linear layer predicts the pixels of masked patches (Xie et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones import patches_of
from unmix.errors import UserError, check_number
from unmix.methods.base import full_precision
from unmix.methods.masked import MaskedPatches, mean_over_masked
from unmix.methods.projected import check_sizes
from unmix.randomness import uniform
from unmix.transfer import to_device

__all__ = ["SimMIM"]


class SimMIM(MaskedPatches):
    """Patches are replaced by a learned token, and a linear layer predicts their pixels.

    Query: the pixels of every patch, from the encoder's token at its place. Target: the pixels of
    the image. Compared by the mean absolute difference over the masked patches.

    Args:
        backbone: One of timm's vision transformers.
        mask_ratio: Share of the squares that are masked, in (0, 1).
        mask_side: Side of the squares, in patches; 2 for the published 32 pixels and patches of 16.
    """

    undecayed: Collection[str] = ("cls_token", "pos_embed")  # `no_weight_decay` of released code

    def __init__(self, backbone: nn.Module, *, mask_ratio: float = 0.6, mask_side: int = 2) -> None:
        check_number("mask_ratio", mask_ratio, above=0, below=1, owner="SimMIM")
        check_sizes("SimMIM", mask_side=mask_side)
        super().__init__(backbone, "SimMIM")
        self.mask_ratio, self.mask_side = mask_ratio, mask_side
        self.mask_token = nn.Parameter(torch.empty(1, self.f.feature_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.g = nn.Linear(self.f.feature_dim, self.f.side**2 * self.f.channels)
        self.squares_of(self.f.built_grid)

    def squares_of(self, grid: tuple[int, int]) -> tuple[int, int, int]:
        """Rows and columns of the squares of a grid of patches, and how many are masked.

        So many are ceil(mask_ratio T), of T squares, as released.

        Raises:
            UserError: if squares do not fill the grid, or all are masked.
        """
        rows, columns = grid[0] // self.mask_side, grid[1] // self.mask_side
        if (rows * self.mask_side, columns * self.mask_side) != grid:
            raise UserError(
                f"squares of {self.mask_side} x {self.mask_side} patches do not fill the "
                f"{grid[0]} x {grid[1]} patches of an image; use a divisor of both numbers.",
                parameter="mask_side",
                owner="SimMIM",
            )
        count = rows * columns
        masked = math.ceil(self.mask_ratio * count)
        if masked >= count:
            raise UserError(
                f"{self.mask_ratio:g} masks all of the {count} squares of an image; use smaller "
                f"squares (mask_side) or patches, or a ratio of {1 - 1 / count:.3g} or less.",
                parameter="mask_ratio",
                owner="SimMIM",
            )
        return rows, columns, masked

    def masked(self, n: int, grid: tuple[int, int], device: torch.device) -> Tensor:
        """The masked patches of n images, bool (n, rows, columns), the same within a step."""
        rows, columns, count = self.squares_of(grid)
        noise = uniform((n, rows * columns), self.generator_of_masks())
        squares = torch.zeros_like(noise, dtype=torch.bool)
        squares.scatter_(1, noise.argsort(dim=1)[:, :count], True)
        side = self.mask_side
        masks = squares.unflatten(1, (rows, columns)).repeat_interleave(side, 1)
        return to_device(masks.repeat_interleave(side, 2), device)

    def query(self, view: Tensor, number: int = 0) -> dict[str, Tensor]:
        """The pixels of every patch and which of them count.

        Returns:
            `pooled`, the encoder's features (N, D); `pixels` (N, rows, columns, side * side * C),
            and `masked`, bool (N, rows, columns).
        """
        grid = self.f.grid(view)
        masked = self.masked(len(view), grid, view.device)
        pooled, _, patches = self.f(view, masked=masked, mask_token=self.mask_token)
        return {"pooled": pooled, "pixels": self.g(patches).unflatten(1, grid), "masked": masked}

    def embeddings(self) -> Sequence[nn.Parameter]:
        """The mask token."""
        return (self.mask_token,)

    @torch.no_grad()
    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Tensor]:
        """The pixels of every patch, (N, rows, columns, side * side * C)."""
        return {0: patches_of(views[0].float(), self.f.side)}

    def compare_positions(self, query: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """The mean difference of each masked patch over their number, (N, rows, columns)."""
        with full_precision(target):
            loss = (query["pixels"].float() - target).abs().mean(dim=-1)
            return mean_over_masked(loss, query["masked"])
