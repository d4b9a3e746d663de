"""DACL's mixup noise: every view of an image has a little of another image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmix.mixtures.draws import PairDraw, whole_image
from unmix.mixtures.fields import check_parameters, parameter
from unmix.mixtures.operators import Operator
from unmix.mixtures.sampling import checked_shape
from unmix.randomness import generator_for, uniform

__all__ = ["MixupNoise", "NoiseDraw"]


@dataclass(frozen=True)
class NoiseDraw:
    """Mixup noise of every view: partners and weights of its own, the same whenever it is applied.

    Attributes:
        seed: Of the partners and weights.
        alpha: The least share of an image's own pixels.
        view: The number of the view that it is for.
    """

    seed: int
    alpha: float
    view: int = 0

    def of_view(self, number: int) -> NoiseDraw:
        """The noise of another view."""
        return NoiseDraw(self.seed, self.alpha, number)

    def resized(self, height: int, width: int) -> NoiseDraw:
        """The same: no number of it depends on the size."""
        return self

    def pairs(self, n: int, height: int, width: int) -> PairDraw:
        """The partners, each another image, and the weights lambda ~ U(alpha, 1) of n images."""
        generator = generator_for(self.seed, "noise", self.view)
        ratio = self.alpha + (1 - self.alpha) * uniform((n,), generator).cpu()
        step = 1 + (uniform((n,), generator).cpu() * (n - 1)).long().clamp(max=n - 2)
        partner = (torch.arange(n) + step) % n
        return PairDraw(partner, whole_image(n, height, width), ratio, (height, width), batch=n)

    def apply(self, images: Tensor) -> Tensor:
        """Mix a batch (N, C, H, W) with itself: lambda x + (1 - lambda) x[partner]."""
        n, _, height, width = images.shape
        return self.pairs(n, height, width).apply(images)


@dataclass(frozen=True)
class MixupNoise(Operator):
    """Each view is lambda x + (1 - lambda) x', lambda ~ U(alpha, 1), and the label stays.

    Every view has partners and weights of its own, so two mixtures of one image, with different
    noise, are a positive pair. Source: Verma et al. 2021 (ICML, DACL; arXiv 2011.04419), Sec. 3,
    linear mixup.

    Args:
        alpha: The least share of an image's own pixels, in [0, 1].

    Raises:
        UserError: if it is out of range.
    """

    alpha: float = parameter(0.9, setting="dacl_alpha", at_least=0, at_most=1)

    def __post_init__(self) -> None:
        check_parameters(self)

    def describe(self) -> str:
        """The noise of a view."""
        return f"mixup noise of every view apart; the own share is U({self.alpha:g}, 1)"

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> NoiseDraw:
        """Draw for a batch of shape (N, C, H, W), of any views."""
        checked_shape(shape)
        device = generator.device if generator is not None else torch.device("cpu")
        seed = torch.randint(2**31 - 1, (), generator=generator, device=device)
        return NoiseDraw(int(seed), self.alpha)
