"""SmoothMix: a spot of the partner with soft edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmix.errors import check_number
from unmix.mixtures.draws import MaskDraw, MixtureDraw
from unmix.mixtures.fields import parameter
from unmix.mixtures.operators import PER, PairOperator, Per
from unmix.mixtures.sampling import PAIRINGS, Pairing, checked_shape, random_centers
from unmix.randomness import uniform

__all__ = ["SmoothMix", "spots"]


@dataclass(frozen=True)
class SmoothMix(PairOperator):
    """The partner fades in by a Gaussian around a random place.

    The partner's share of a pixel at distance d of the center is exp(-d^2 / (2 sigma^2)), and its
    share of the image is the mean of these. Source: Lee et al. 2020 (CVPR Workshops, SmoothMix),
    the round masks; sigma is uniform between a quarter and half of the side.

    Args:
        sigma: Least and greatest sigma, as shares of the image's longer side; above 0.
        per: One mask for a `batch`, or for each `sample`.
        pairing: See `unmix.mixtures.sampling.partners`.

    Raises:
        UserError: if a number is out of its range, or a string is none of its choices.
    """

    one_draw = "one mask"
    sigma: tuple[float, float] = parameter((0.25, 0.5), above=0)
    per: Per = parameter("batch", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("reverse", setting="unmix_pairing", choices=PAIRINGS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sigma", self.sigma[1], at_least=self.sigma[0], owner="SmoothMix")

    def describe_mixing(self) -> str:
        """The distribution of sigma."""
        low, high = self.sigma
        return f"a Gaussian spot; sigma U({low:g}, {high:g}) of the side"

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for a batch of shape (N, C, H, W); features (N, D) for nearest neighbors."""
        n, height, width = checked_shape(shape)
        m = self._times(n)
        low, high = self.sigma
        sigma = max(height, width) * (low + (high - low) * uniform((m,), generator).cpu())
        mask = spots(random_centers(m, height, width, generator), sigma, height, width)
        return self._credited(MaskDraw(self._partner(n, generator, features), mask, n))


def spots(center: Tensor, sigma: Tensor, height: int, width: int) -> Tensor:
    """Gaussians with the value 1 at their centers: float (M, H, W).

    Args:
        center: Row and column, int64 (M, 2).
        sigma: In pixels, float (M,).
        height: Rows of the image.
        width: Columns of the image.
    """
    down, across = (
        torch.exp(
            -((torch.arange(side, device="cpu") - at[:, None]) ** 2) / (2 * sigma[:, None] ** 2)
        )
        for side, at in zip((height, width), center.unbind(1), strict=True)
    )
    return down[:, :, None] * across[:, None, :]
