"""Small transformers over tokens with fixed positions: MAE's decoder, I-JEPA's predictor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones.tokens import sine_cosine_positions
from unmix.errors import UserError
from unmix.transfer import to_device

__all__ = ["TokenDecoder", "TokenPredictor"]


class TokenDecoder(nn.Module):
    """Blocks of timm's over embedded tokens of a grid, with learned tokens where there are none.

    Weights begin as in MAE's released code: Xavier's uniform ones, and N(0, 0.02) for the mask
    token.

    Args:
        sizes: Length of the tokens that come in, within the blocks, and of those that come out.
        depth: Number of blocks; at least 1.
        heads: Attention heads; they divide the length within.
        grid: Rows and columns of the usual grid.
        parameter: The setting of the length within, for messages.

    Raises:
        UserError: if the sizes do not fit.
    """

    positions: Tensor

    def __init__(
        self,
        sizes: tuple[int, int, int],
        depth: int,
        heads: int,
        grid: tuple[int, int],
        parameter: str = "decoder_dim",
    ) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        before, dim, after = sizes
        if dim % 4 or dim % heads:
            raise UserError(
                f"{dim} must be a multiple of 4 (sine-cosine positions) and of its {heads} "
                "attention heads.",
                parameter=parameter,
            )
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(before, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
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

    def positions_on(self, grid: Sequence[int], like: Tensor) -> Tensor:
        """Position embeddings of a grid, (rows * columns, dim), of the type of other tensors."""
        positions = self.positions
        if tuple(grid) != self.grid:
            rows, columns = grid
            positions = to_device(sine_cosine_positions(self.dim, rows, columns), like.device)
        return positions.to(like.dtype)

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
        x = torch.cat([prefix, patches + self.positions_on(grid, patches)], dim=1)
        x = self.out(self.norm(self.blocks(x)))
        return x[:, prefix.shape[1] :].unflatten(1, tuple(grid))


class TokenPredictor(TokenDecoder):
    """A decoder of some tokens from others of the grid: I-JEPA's predictor.

    Weights begin as in I-JEPA's released code: truncated N(0, 0.02).

    Its arguments are those of `TokenDecoder`.
    """

    def _initialize(self) -> None:
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def predict(self, patches: Tensor, keep: Tensor, places: Tensor, grid: Sequence[int]) -> Tensor:
        """Predict the tokens of blocks, each block by itself, from the tokens that are there.

        Args:
            patches: (N, T, sizes[0]).
            keep: Their places, int64 (N, T).
            places: Of the tokens of each block, int64 (N, B, S).
            grid: Rows and columns.

        Returns:
            (N, B, S, sizes[2]).
        """
        x = self.embed(patches)
        positions = self.positions_on(grid, x)
        x = (x + positions[keep])[:, None].expand(-1, places.shape[1], -1, -1)
        asked = self.mask_token.to(x.dtype) + positions[places]
        x = torch.cat([x, asked], dim=2).flatten(0, 1)
        x = self.out(self.norm(self.blocks(x)))
        return x[:, patches.shape[1] :].unflatten(0, tuple(places.shape[:2]))
