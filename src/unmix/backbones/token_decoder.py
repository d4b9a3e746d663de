"""A small transformer over tokens with fixed positions: MAE's decoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones.tokens import sine_cosine_positions
from unmix.errors import UserError
from unmix.transfer import to_device

__all__ = ["TokenDecoder"]


class TokenDecoder(nn.Module):
    """Blocks of timm's over embedded tokens of a grid, with learned tokens where there are none.

    Weights begin as in MAE's released code: Xavier's uniform ones, and N(0, 0.02) for the mask
    token.

    Args:
        sizes: Length of the tokens that come in, within the blocks, and of those that come out.
        depth: Number of blocks; at least 1.
        heads: Attention heads; they divide the length within.
        grid: Rows and columns of the usual grid.

    Raises:
        UserError: if the sizes do not fit.
    """

    positions: Tensor

    def __init__(
        self, sizes: tuple[int, int, int], depth: int, heads: int, grid: tuple[int, int]
    ) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        before, dim, after = sizes
        if dim % 4 or dim % heads:
            raise UserError(
                f"{dim} must be a multiple of 4 (sine-cosine positions) and of its {heads} "
                "attention heads.",
                parameter="decoder_dim",
            )
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(before, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.Sequential(
            *(Block(dim, heads, 4.0, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        )
        self.norm = norm(dim)
        self.out = nn.Linear(dim, after)
        self.grid, self.dim = grid, dim
        self.register_buffer("positions", sine_cosine_positions(dim, *grid), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        nn.init.normal_(self.mask_token, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def filled(self, patches: Tensor, keep: Tensor, count: int) -> Tensor:
        """Embedded tokens at their places, and mask tokens elsewhere, (N, count, dim).

        Args:
            patches: (N, T, dim).
            keep: Their places, int64 (N, T).
            count: Places of the grid.
        """
        mask = self.mask_token.to(patches.dtype).expand(len(patches), count, -1)
        return mask.scatter(1, keep[:, :, None].expand(-1, -1, self.dim), patches)

    def decode(self, prefix: Tensor, patches: Tensor, grid: Sequence[int]) -> Tensor:
        """Decode the tokens of a whole grid, with others before them that have no position.

        Args:
            prefix: (N, P, dim).
            patches: (N, rows * columns, dim).
            grid: Rows and columns.

        Returns:
            (N, rows, columns, sizes[2]).
        """
        positions = self.positions
        if tuple(grid) != self.grid:
            rows, columns = grid
            positions = to_device(sine_cosine_positions(self.dim, rows, columns), patches.device)
        x = torch.cat([prefix, patches + positions.to(patches.dtype)], dim=1)
        x = self.out(self.norm(self.blocks(x)))
        return x[:, prefix.shape[1] :].unflatten(1, tuple(grid))
