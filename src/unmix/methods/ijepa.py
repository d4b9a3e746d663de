"""I-JEPA: tokens of blocks are predicted from those of their context (Assran et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmix.backbones import BACKBONES
from unmix.backbones.token_decoder import TokenPredictor
from unmix.backbones.tokens import fix_positions, no_patches
from unmix.errors import UserError, check_number
from unmix.methods.base import Method, Progress, full_precision
from unmix.methods.masked import MaskedPatches
from unmix.methods.multiblock import MultiBlock, MultiBlockMasks
from unmix.methods.projected import check_sizes
from unmix.momentum import ema_update, momentum_copy
from unmix.randomness import generator_for
from unmix.transfer import to_device

__all__ = ["IJEPA"]


class Query(NamedTuple):
    """What is predicted of a view, by sample.

    Attributes:
        pooled: The encoder's features of the context, (N, D).
        predicted: Tokens of each target block, (N, blocks, S, D).
        places: The numbers of their patches, int64 (N, blocks, S).
    """

    pooled: Tensor
    predicted: Tensor
    places: Tensor


class IJEPA(MaskedPatches):
    """A predictor gives the teacher's tokens of four blocks from a context without them.

    Query: the predictor's tokens of each block, from the encoder's of the patches of the context;
    all other patches are dropped. Target: the tokens that a momentum encoder gives the whole image,
    normalized each by its mean and variance. Compared by the smooth L1 distance, the mean over
    blocks, patches and dimensions. There is one view, with no augmentation but a crop.

    Args:
        backbone: One of timm's vision transformers, whose patch tokens are averaged.
        predictor_dim: Length of the predictor's tokens.
        predictor_depth: Blocks of the predictor.
        predictor_heads: Its attention heads; by default as many as the encoder's.
        target_blocks: Number of target blocks of an image.
        target_scale_min: Smallest share of the patches in one.
        target_scale_max: Largest share of the patches in one.
        target_ratio_min: Smallest ratio of its height to its width.
        target_ratio_max: Largest ratio of its height to its width.
        context_scale_min: Smallest share of the patches in the block that the context is of.
        context_scale_max: Largest share of the patches in it.
        min_keep: A context without its targets has more patches than these.
        encoder_momentum: m of the momentum encoder at the start; rises linearly to 1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        predictor_dim: int = 384,
        predictor_depth: int = 6,
        predictor_heads: int | None = None,
        target_blocks: int = 4,
        target_scale_min: float = 0.15,
        target_scale_max: float = 0.2,
        target_ratio_min: float = 0.75,
        target_ratio_max: float = 1.5,
        context_scale_min: float = 0.85,
        context_scale_max: float = 1.0,
        min_keep: int = 10,
        encoder_momentum: float = 0.996,
    ) -> None:
        check_sizes(
            "IJEPA", predictor_dim=predictor_dim, predictor_depth=predictor_depth,
            target_blocks=target_blocks, predictor_heads=predictor_heads or 1,
        )  # fmt: skip
        for word, low, high in (
            ("target_scale", target_scale_min, target_scale_max),
            ("context_scale", context_scale_min, context_scale_max),
        ):
            check_number(f"{word}_max", high, above=0, at_most=1, owner="IJEPA")
            check_number(f"{word}_min", low, above=0, at_most=high, owner="IJEPA")
        check_number("target_ratio_max", target_ratio_max, above=0, owner="IJEPA")
        check_number(
            "target_ratio_min", target_ratio_min, above=0, at_most=target_ratio_max, owner="IJEPA"
        )
        check_number("min_keep", min_keep, at_least=0, owner="IJEPA")
        check_number("encoder_momentum", encoder_momentum, at_least=0, at_most=1, owner="IJEPA")
        super().__init__(backbone, "I-JEPA")
        dim = self.f.feature_dim
        heads = predictor_heads or int(self.f.vit.blocks[0].attn.num_heads)
        sizes = (dim, predictor_dim, dim)
        self.g = TokenPredictor(sizes, predictor_depth, heads, self.f.built_grid, "predictor_dim")
        self.masks = MultiBlock(
            target_blocks, (target_scale_min, target_scale_max),
            (target_ratio_min, target_ratio_max), (context_scale_min, context_scale_max), min_keep,
        )  # fmt: skip
        self.masks.check(self.f.built_grid, "IJEPA")
        self.f_t = momentum_copy(self.f)
        self.m = encoder_momentum

    @staticmethod
    def build_backbone(name: str, **options: Any) -> nn.Module:
        """The encoder as published: fixed sine-cosine positions, no class token.

        With `class_token` there is one, which takes part in attention and is not trained otherwise.

        Raises:
            UserError: if it is no vision transformer, or its class token would be its features.
        """
        if name in BACKBONES:
            raise no_patches("I-JEPA", name)
        if options.get("pooling") == "class":
            raise UserError(
                "'class' would be features that I-JEPA does not train; use 'average'.",
                parameter="pooling",
            )
        if options.get("class_token") is None:
            options["class_token"] = False
        backbone = Method.build_backbone(name, **{**options, "pooling": "average"})
        fix_positions(backbone)
        return backbone

    def begin_step(self, progress: Progress) -> None:
        """Update the momentum encoder; masks are drawn anew, and differ between processes."""
        super().begin_step(progress)
        ema_update(self.f_t, self.f, self.m + (1 - self.m) * progress.fraction)

    def masks_of(self, n: int, grid: tuple[int, int]) -> MultiBlockMasks:
        """The masks of n images, on the CPU: the same for all calls of a step.

        Their sizes are the same on every process, as released.
        """
        self.masks.check(grid, "IJEPA")
        sizes = generator_for(self.seed, "sizes", *self.place)
        return self.masks.draw(n, grid, sizes, self.generator_of_masks())

    def query(self, view: Tensor, number: int = 0) -> Query:
        """The tokens of the target blocks, predicted from those of the context."""
        grid = self.f.grid(view)
        masks = self.masks_of(len(view), grid)
        context, places = (to_device(each, view.device) for each in masks)
        tokens = self.f(view, context)
        predicted = self.g.predict(tokens.patches, context, places, grid)
        return Query(tokens.pooled, predicted, places)

    @torch.no_grad()
    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Tensor]:
        """The momentum encoder's normalized tokens of every patch, (N, rows, columns, D)."""
        tokens: Tensor = self.f_t(views[0]).patches
        with full_precision(tokens):
            normalized = F.layer_norm(tokens.float(), tokens.shape[-1:])
        return {0: normalized.unflatten(1, self.f.grid(views[0]))}

    def compare_positions(self, query: Query, target: Tensor) -> Tensor:
        """The smooth L1 distance of each prediction, over their number: (N, rows, columns).

        A patch in several blocks is predicted in each.
        """
        n, blocks, size = query.places.shape
        dim, grid = target.shape[-1], target.shape[1:3]
        where = query.places.flatten(1)[:, :, None].expand(-1, -1, dim)
        theirs = target.flatten(1, 2).gather(1, where).unflatten(1, (blocks, size))
        with full_precision(target):
            losses = F.smooth_l1_loss(query.predicted.float(), theirs, reduction="none").mean(dim=3)
            # No place is twice in a block, so that the sum is the same on every device.
            spread = losses.new_zeros(n, blocks, grid[0] * grid[1])
            spread = spread.scatter(2, query.places, losses / (blocks * size))
            return spread.sum(dim=1).unflatten(1, grid)

    @property
    def momentum_backbones(self) -> Sequence[nn.Module]:
        """The momentum encoder."""
        return (self.f_t.vit,)  # type: ignore[return-value]
