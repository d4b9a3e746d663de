"""CMC's two encoders: one sees the lightness of an image, the other its color."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones.base import Backbone
from unmix.backbones.build import build
from unmix.backbones.measuring import feature_dim
from unmix.errors import UserError

__all__ = ["HalfEncoders"]


class HalfEncoders(Backbone):
    """Two backbones for the two channel groups of a Lab or YCbCr image (CMC, arXiv 1906.05849).

    Channel 0 (L or Y) goes through `l`, channels 1 and 2 (ab or CbCr) through `ab`. Both color
    spaces have the same layout, so the encoders need not know which one it is.

    Args:
        name: Name of both backbones; see `build`.
        width: Width of each. CMC's ResNet v1, v2 and v3 are widths 0.5, 1 and 2.
        stem: Stem of both; see `check_stem`.
        size: Side of the images in pixels.
        patch: Side of a vision transformer's patches in pixels.
        heads: Attention heads of a vision transformer.
        depth: Blocks of a vision transformer.
        registers: Register tokens of a vision transformer.
        class_token: Whether a vision transformer has a class token.
        pooling: Features of a vision transformer; see `build`.
        drop_path: Stochastic depth of a vision transformer.
        drop_path_uniform: Whether every block has it alike.
        zero_init_residual: Start the blocks of ResNets as the identity.

    Raises:
        UserError: as `build` does.
    """

    def __init__(
        self,
        name: str,
        *,
        width: float = 0.5,
        stem: str = "auto",
        size: int = 224,
        patch: int | None = None,
        heads: int | None = None,
        depth: int | None = None,
        registers: int | None = None,
        class_token: bool | None = None,
        pooling: str | None = None,
        drop_path: float | None = None,
        drop_path_uniform: bool = False,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        self.l, self.ab = (
            build(
                name, in_channels=c, width=width, stem=stem, size=size, patch=patch,
                heads=heads, depth=depth, registers=registers, class_token=class_token,
                pooling=pooling, drop_path=drop_path, drop_path_uniform=drop_path_uniform,
                zero_init_residual=zero_init_residual,
            )
            for c in (1, 2)
        )  # fmt: skip
        self.feature_dim = self.l.feature_dim + self.ab.feature_dim

    @classmethod
    def of(cls, halves: Any) -> HalfEncoders:
        """Half-encoders of two modules (l, ab), or those that are given.

        A module of another class that has `l`, `ab` and `feature_dim` is taken as it is.

        Raises:
            UserError: if it is anything else, or a module gives no features (N, D).
        """
        parts = (getattr(halves, name, None) for name in ("l", "ab"))
        if all(isinstance(part, nn.Module) for part in parts) and hasattr(halves, "feature_dim"):
            return halves
        if not isinstance(halves, (tuple, list)) or len(halves) != 2:
            raise UserError(
                f"CMC needs two encoders, and {type(halves).__name__} was given; give (l, ab): one "
                "of 1 channel (lightness), one of 2 channels (colors).",
                parameter="backbone",
            )
        found = cls.__new__(cls)
        nn.Module.__init__(found)
        dims = [feature_dim(half, channels) for channels, half in enumerate(halves, start=1)]
        found.l, found.ab = halves
        found.feature_dim = sum(dims)
        return found

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images `(N, 3, H, W)` to the features of both halves, each `(N, feature_dim / 2)`."""
        return self.l(images[:, :1]), self.ab(images[:, 1:])

    def features(self, images: Tensor) -> Tensor:
        """Map images `(N, 3, H, W)` to both halves' features side by side, `(N, feature_dim)`."""
        return torch.cat(self(images), dim=1)
