"""Draws whose mixtures are the sample's alone: of several crops of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmix.errors import UserError
from unmix.mixtures.draws import MixtureDraw, PixelDraw
from unmix.mixtures.pixels import pixelwise
from unmix.mixtures.positions import at_every_position

__all__ = ["OneOwner", "OwnDraw", "check_others"]


class OneOwner(PixelDraw):
    """The owners and shares of mixtures that are the sample's alone.

    There are two columns of owners, as for any pair, and the share of the second is 0.
    """

    @property
    def is_mixed(self) -> Tensor:
        """True where a mixture differs from its image, bool (M,)."""
        raise NotImplementedError

    @property
    def per_sample(self) -> bool:
        """False: whatever is drawn, every sample owns all of its mixture."""
        return False

    @property
    def batch(self) -> int:
        """Number of images that this was drawn for."""
        return len(self.is_mixed)

    @property
    def partner(self) -> Tensor:
        """The sample itself, int64 (M,)."""
        return torch.arange(len(self.is_mixed), device="cpu")

    @property
    def weight(self) -> Tensor:
        """Ones, (M,)."""
        return torch.ones(len(self.is_mixed), device="cpu", dtype=torch.float32)

    @property
    def owners(self) -> Tensor:
        """The sample, twice, int64 (M, 2)."""
        return self.partner[:, None].expand(-1, 2)

    @property
    def shares(self) -> Tensor:
        """1 and 0, (M, 2)."""
        return torch.tensor([1.0, 0.0], device="cpu", dtype=torch.float32).expand(
            len(self.is_mixed), 2
        )

    def shares_at(self, rows: int, columns: int) -> Tensor:
        """1 and 0 at every position, (M, 2, rows, columns)."""
        return at_every_position(self.shares, rows, columns)


def check_others(others: Sequence[Tensor]) -> None:
    """Check that there are further views: without them nothing would be mixed.

    Raises:
        UserError: if there are none.
    """
    if not others:
        raise UserError(
            "others: this mixture is of several views of an image, and there is one; give "
            "draw.apply(images, views), or unmix.Mixture(operator, others=views)."
        )


@dataclass(frozen=True)
class OwnDraw(OneOwner):
    """A mixture of pairs whose two images are views of the same one.

    Attributes:
        pairs: The draw, with the image itself as the partner. Its pixels come from the further view
            that `apply` is given.
    """

    pairs: MixtureDraw

    @property
    def is_mixed(self) -> Tensor:
        """True where the other view comes in, bool (M,)."""
        return self.pairs.is_mixed

    def resized(self, height: int, width: int) -> OwnDraw:
        """The same draw for images of another size."""
        return replace(self, pairs=self.pairs.resized(height, width))

    @pixelwise
    def apply(self, images: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """Mix a batch (N, C, H, W) with another view of its images.

        Raises:
            UserError: if there is none.
        """
        check_others(others)
        return self.pairs.apply(images, others)
