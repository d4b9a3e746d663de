"""The tokens of a vision transformer, of all patches or of some."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unmix.errors import UserError

__all__ = [
    "TokenEncoder",
    "Tokens",
    "fix_positions",
    "no_patches",
    "patches_of",
    "sine_cosine_positions",
    "uniform_weights",
]


class Tokens(NamedTuple):
    """What a vision transformer says of images.

    Attributes:
        pooled: Its features, (N, D): for most models the class token.
        prefix: Class and register tokens, (N, P, D), after the last norm.
        patches: Of the patches that were kept, row by row, (N, T, D), after the last norm.
    """

    pooled: Tensor
    prefix: Tensor
    patches: Tensor


class TokenEncoder(nn.Module):
    """One of timm's vision transformers, whose tokens are wanted beside its pooled features.

    Positions are interpolated for images of another size than the model was built for, as in timm.

    Args:
        vit: A `timm.models.VisionTransformer`, or a `timm.models.Eva` (EVA-02, DINOv3), which has
            rotary positions; such as of `unmix.backbones.build`.
        owner: The method, for messages.

    Raises:
        UserError: if it is none.
    """

    def __init__(self, vit: nn.Module, owner: str) -> None:
        super().__init__()
        _check(vit, owner)
        self.vit: Any = vit

    @property
    def feature_dim(self) -> int:
        """D, of the tokens and the pooled features."""
        return int(self.vit.num_features)

    @property
    def side(self) -> int:
        """Side of a patch in pixels."""
        return int(self.vit.patch_embed.patch_size[0])

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return int(self.vit.patch_embed.proj.in_channels)

    @property
    def built_grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of images of the size that the model was built for."""
        rows, columns = self.vit.patch_embed.grid_size
        return int(rows), int(columns)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of the patches of images (N, C, H, W).

        Raises:
            UserError: if patches do not fill them, or the model is built for another size alone.
        """
        height, width = images.shape[2:]
        vit, side = self.vit, self.side
        if not vit.dynamic_img_size and (height, width) != tuple(vit.patch_embed.img_size):
            raise UserError(
                f"images of {height} x {width} pixels are not of the size that the transformer was "
                "built for; build it with `dynamic_img_size=True`.",
                parameter="backbone",
            )
        if height % side or width % side:
            raise UserError(
                f"patches of {side} pixels do not fill images of {height} x {width}; use a divisor "
                "of the sides.",
                parameter="patch",
            )
        return height // side, width // side

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        *,
        masked: Tensor | None = None,
        mask_token: Tensor | None = None,
        swapped: Tensor | None = None,
    ) -> Tokens:
        """Encode images (N, C, H, W), or some of their patches.

        Args:
            images: Normalized.
            keep: The numbers of the patches that the blocks see, int64 (N, T), counted row by row;
                the others are dropped after they are embedded. By default all, in order.
            masked: True for patches that are replaced by `mask_token`, bool (N, rows * columns).
            mask_token: A learned embedding, (1, D).
            swapped: True for patches that are taken from the batch in reverse, bool (N, rows *
                columns). They attend to each other alone, and so do the others with the prefix
                (masked self-attention of MixMIM, Liu et al. 2022).
        """
        vit = self.vit
        self.grid(images)
        x = vit.patch_embed(images)
        if masked is not None:
            assert mask_token is not None
            where = masked.reshape(*x.shape[:-1], 1)
            x = torch.where(where, mask_token.to(x.dtype), x)
        attention = None
        if swapped is not None:
            x = torch.where(swapped.reshape(*x.shape[:-1], 1), x.flip(0), x)
            group = nn.functional.pad(swapped, (vit.num_prefix_tokens, 0))
            attention = group[:, None, :, None] == group[:, None, None, :]
        placed = vit._pos_embed(x)
        x, rotary = placed if isinstance(placed, tuple) else (placed, None)
        return self.encode(x, keep, attention, rotary)

    def encode(
        self,
        embedded: Tensor,
        keep: Tensor | None = None,
        attention: Tensor | None = None,
        rotary: Tensor | None = None,
    ) -> Tokens:
        """The rest of the model, from embedded tokens with their positions, (N, P + T, D).

        Args:
            embedded: Prefix and patches.
            keep: As of `forward`.
            attention: True where a token may attend to another, bool (N or 1, 1, L, L) of the L
                prefix and patch tokens; by default everywhere.
            rotary: Rotary positions of all patches, as timm has them: (rows * columns, E), or those
                of each head of each block, (blocks, heads, rows * columns, E).
        """
        vit, prefix = self.vit, self.vit.num_prefix_tokens
        x = embedded
        if keep is not None:
            rows = keep[:, :, None].expand(-1, -1, x.shape[2])
            x = torch.cat([x[:, :prefix], x[:, prefix:].gather(1, rows)], dim=1)
            rotary = None if rotary is None else _kept(rotary, keep)
        x = vit.norm_pre(x)
        options: dict[str, Any] = {} if attention is None else {"attn_mask": attention}
        for number, block in enumerate(vit.blocks):
            if rotary is not None:
                options["rope"] = rotary[number] if getattr(vit, "rope_mixed", False) else rotary
            if vit.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, **options)
            else:
                x = block(x, **options)
        x = vit.norm(x)
        pooled = vit.forward_head(x, pre_logits=True)
        # Models that pool before their last norm have it in `fc_norm`.
        tokens = vit.fc_norm(x) if isinstance(vit.norm, nn.Identity) else x
        return Tokens(pooled, tokens[:, :prefix], tokens[:, prefix:])


def _kept(rotary: Tensor, keep: Tensor) -> Tensor:
    """Rotary positions of the patches that are kept, in the order of these, for each image."""
    if rotary.ndim == 2:
        return rotary[keep][:, None]  # for all heads: (N, 1, T, E)
    return rotary[:, :, keep].transpose(1, 2)  # of each block: (blocks, N, heads, T, E)


def _check(vit: Any, owner: str) -> None:
    """Check that a backbone has tokens that can be dropped.

    Raises:
        UserError: if not.
    """
    name = type(vit).__name__
    if not _is_known(vit):
        raise no_patches(owner, name)
    rows, columns = vit.patch_embed.patch_size
    if rows != columns or not isinstance(vit.patch_drop, (nn.Identity, type(None))):
        what = f"patches of {rows} x {columns}" if rows != columns else "a `patch_drop_rate`"
        raise UserError(
            f"{owner} is for square patches that are all there, and this {name} has {what}; leave "
            "it out.",
            parameter="backbone",
        )


def _is_known(vit: object) -> bool:
    try:
        from timm.models.eva import Eva
        from timm.models.vision_transformer import VisionTransformer
    except ImportError:
        return False
    return isinstance(vit, (VisionTransformer, Eva))


def no_patches(owner: str, name: str) -> UserError:
    """The error of a network without patches, for a method that needs them."""
    return UserError(
        f"{owner} is for the patches of timm's vision transformers, and {name} is none; use "
        '`backbone="timm:vit_tiny_patch16_224"`, with `patch=4` for images of 32 '
        "pixels.",
        parameter="backbone",
    )


def patches_of(images: Tensor, side: int) -> Tensor:
    """The pixels of each patch, (N, rows, columns, side * side * C).

    In the order of MAE's released code: row, column, channel.

    Args:
        images: (N, C, H, W), whose sides are multiples of that of a patch.
        side: Of a patch, in pixels.
    """
    n, channels, height, width = images.shape
    cut = images.reshape(n, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3)


def sine_cosine_positions(dim: int, rows: int, columns: int) -> Tensor:
    """Fixed position embeddings of a grid, row by row, (rows * columns, dim).

    The first half is of the column, the second of the row; each is the sines, then the cosines, of
    the place times 10000 ** -(i / (dim / 4)) (Vaswani et al. 2017; MAE's released code).

    Args:
        dim: A multiple of 4.
        rows: Of the grid.
        columns: Of the grid.
    """
    omega = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))

    def along(places: Tensor) -> Tensor:
        angle = places.double()[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    row, column = torch.arange(rows), torch.arange(columns)
    both = [
        along(column)[None].expand(rows, -1, -1),
        along(row)[:, None].expand(-1, columns, -1),
    ]
    return torch.cat(both, dim=2).flatten(0, 1).float()


@torch.no_grad()
def fix_positions(vit: Any) -> None:
    """Give a transformer fixed sine-cosine positions; those of class and register tokens are 0.

    One with rotary positions keeps its own, and so do other kinds than those of `TokenEncoder`.
    """
    positions = getattr(vit, "pos_embed", None)
    if positions is None or not _is_known(vit) or getattr(vit, "rope", None) is not None:
        return
    fixed = sine_cosine_positions(positions.shape[2], *vit.patch_embed.grid_size)
    positions.zero_()
    positions[0, -len(fixed) :] = fixed
    positions.requires_grad_(False)


@torch.no_grad()
def uniform_weights(vit: nn.Module, *, apart: bool = False) -> None:
    """Draw a transformer's weights by Xavier's uniform distribution, as MAE's released code.

    Those of linear layers, whose biases are 0, and of the patch embedding.

    Args:
        vit: The transformer; changed in place.
        apart: As MoCo v3's code: queries, keys and values are counted apart, and the embedding's
            biases are 0 too.
    """
    for name, layer in vit.named_modules():
        embeds = name == "patch_embed.proj"
        if not embeds and not isinstance(layer, nn.Linear):
            continue
        weight, bias = layer.weight, layer.bias
        parts = 3 if apart and name.endswith(".qkv") else 1
        for part in weight.view(len(weight), -1).chunk(parts):  # type: ignore[operator, arg-type]
            nn.init.xavier_uniform_(part)
        if bias is not None and (apart or not embeds):
            bias.zero_()  # type: ignore[operator]
