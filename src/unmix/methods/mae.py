"""MAE: masked autoencoders (He et al. 2021), and MixMIM's mixed tokens (Liu et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones import BACKBONES, patches_of
from unmix.backbones.token_decoder import TokenDecoder
from unmix.backbones.tokens import fix_positions, no_patches, uniform_weights
from unmix.errors import UserError, check_number
from unmix.methods.base import Method, full_precision
from unmix.methods.masked import MaskedPatches, mean_over_masked
from unmix.methods.projected import check_sizes
from unmix.randomness import uniform
from unmix.transfer import to_device

__all__ = ["MAE"]


class MAE(MaskedPatches):
    """Most patches of an image are dropped, and a light decoder reconstructs their pixels.

    Query: the decoder's pixels of every patch, from the encoder's tokens of those that are kept.
    Target: the pixels of the image, patch by patch. Compared by the mean square over the patches
    that were dropped. With `mixed_tokens` (MixMIM) they are not dropped: those of another image are
    in their place, which attend to each other alone, and the decoder reconstructs both images.

    Args:
        backbone: One of timm's vision transformers.
        mask_ratio: Share of the patches that are masked, in (0, 1).
        norm_pix: Standardize the target's pixels within each patch.
        decoder_dim: Length of the decoder's tokens.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Attention heads of the decoder.
        mixed_tokens: Put the tokens of the batch in reverse where the masked ones are, instead of
            none, and reconstruct both images.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        mask_ratio: float = 0.75,
        norm_pix: bool = True,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mixed_tokens: bool = False,
    ) -> None:
        check_number("mask_ratio", mask_ratio, above=0, below=1, owner="MAE")
        check_sizes(
            "MAE", decoder_dim=decoder_dim, decoder_depth=decoder_depth, decoder_heads=decoder_heads
        )
        super().__init__(backbone, "MAE")
        self.mask_ratio, self.norm_pix, self.mixed_tokens = mask_ratio, norm_pix, mixed_tokens
        if mixed_tokens:
            self.across_samples = "partners"
        pixels = self.f.side**2 * self.f.channels
        sizes = (self.f.feature_dim, decoder_dim, pixels)
        self.g = TokenDecoder(sizes, decoder_depth, decoder_heads, self.f.built_grid)
        self.kept_of(self.f.built_grid)

    @staticmethod
    def build_backbone(name: str, **options: Any) -> nn.Module:
        """The encoder, with sine-cosine positions that are not trained, as published.

        It begins as in the released code: Xavier's uniform weights, a class token of N(0, 0.02).
        Weights that are read into it bring positions of their own, which stay as they are too.

        Raises:
            UserError: if it is no vision transformer.
        """
        if name in BACKBONES:
            raise no_patches("MAE", name)
        backbone = Method.build_backbone(name, **options)
        fix_positions(backbone)
        uniform_weights(backbone)
        if isinstance(token := getattr(backbone, "cls_token", None), nn.Parameter):
            nn.init.normal_(token, std=0.02)
        return backbone

    def kept_of(self, grid: tuple[int, int]) -> int:
        """The number of patches that are kept, floor((1 - mask_ratio) T), of T on a grid.

        Raises:
            UserError: if none is kept, or all are.
        """
        count = grid[0] * grid[1]
        kept = int(count * (1 - self.mask_ratio))
        if not 0 < kept < count:
            left = "none" if kept == 0 else "all"
            raise UserError(
                f"{self.mask_ratio:g} leaves {left} of the {count} patches of an image; use "
                f"smaller patches, or a ratio between {1 / count:.3g} and {1 - 1 / count:.3g}.",
                parameter="mask_ratio",
                owner="MAE",
            )
        return kept

    def kept(self, n: int, grid: tuple[int, int], device: torch.device) -> Tensor:
        """The patches that are kept of n images, int64 (n, T): the same for all calls of a step.

        With mixed tokens all images have the same ones, as released.
        """
        rows = 1 if self.mixed_tokens else n
        noise = uniform((rows, grid[0] * grid[1]), self.generator_of_masks())
        return to_device(noise.argsort(dim=1)[:, : self.kept_of(grid)].expand(n, -1), device)

    def query(self, view: Tensor, number: int = 0) -> dict[str, Tensor]:
        """The pixels of every patch and which of them count.

        Returns:
            `pooled`, the encoder's features (N, D); `pixels` (N, rows, columns, side * side * C),
            and `masked`, bool (N, rows, columns).
        """
        grid = self.f.grid(view)
        keep = self.kept(len(view), grid, view.device)
        masked = torch.ones(len(view), grid[0] * grid[1], dtype=torch.bool, device=view.device)
        masked = masked.scatter(1, keep, False)
        if self.mixed_tokens:
            pooled, pixels = self.unmixed(view, masked, grid)
            masked = torch.ones_like(masked)
        else:
            pooled, prefix, patches = self.f(view, keep)
            filled = self.g.filled(self.g.embed(patches), keep, masked.shape[1])
            pixels = self.g.decode(self.g.embed(prefix), filled, grid)
        return {"pooled": pooled, "pixels": pixels, "masked": masked.unflatten(1, grid)}

    def unmixed(self, view: Tensor, masked: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Encode images with masked tokens of the batch in reverse, and decode both of each pair.

        What an image lacks in its own mixture is decoded there, and what it gave to its partner's
        is decoded from what that one lacks of it: together every patch, once.

        Returns:
            The encoder's features (N, D) and the pixels of every patch.
        """
        pooled, _, patches = self.f(view, swapped=masked)
        tokens, place = self.g.embed(patches), masked[:, :, None]
        mask = self.g.mask_token.to(tokens.dtype)
        both = torch.cat([torch.where(place, mask, tokens), torch.where(place, tokens, mask)])
        own, others = self.g.decode(both[:, :0], both, grid).chunk(2)
        lacked = masked.unflatten(1, grid)[..., None]
        return pooled, torch.where(lacked, own, others.flip(0))

    @torch.no_grad()
    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Tensor]:
        """The pixels of every patch, (N, rows, columns, side * side * C)."""
        pixels = patches_of(views[0].float(), self.f.side)
        if self.norm_pix:
            variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
            pixels = (pixels - mean) / (variance + 1e-6).sqrt()
        return {0: pixels}

    def compare_positions(self, query: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """The mean square of each masked patch over their number: (N, rows, columns)."""
        with full_precision(target):
            loss = (query["pixels"].float() - target).square().mean(dim=-1)
            return mean_over_masked(loss, query["masked"])
