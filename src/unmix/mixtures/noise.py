"""DACL's mixup noise: every view of an image has a little of another image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmix.mixtures.draws import PairDraw, whole_image
from unmix.mixtures.fields import check_parameters, parameter
from unmix.mixtures.operators import Operator
from unmix.mixtures.sampling import checked_shape
from unmix.randomness import device_of, generator_for, uniform

__all__ = ["MixupNoise", "NoiseDraw"]


@dataclass(frozen=True)
class NoiseDraw:
    """Mixup noise of every view: partners and weights of its own, the same whenever it is applied.

    Attributes:
        seed: Of the partners and weights.
        least: The least share of an image's own pixels.
        shape: N, height and width of the images that it was drawn for.
        view: The number of the view that it is for.
    """

    seed: int
    least: float
    shape: tuple[int, int, int]
    view: int = 0

    def of_view(self, number: int) -> NoiseDraw:
        """The noise of another view."""
        return replace(self, view=number)

    def resized(self, height: int, width: int) -> NoiseDraw:
        """The same partners and weights for images of another size."""
        return replace(self, shape=(self.shape[0], height, width))

    @property
    def pairs(self) -> PairDraw:
        """The partners, each another image, and the weights lambda ~ U(least, 1)."""
        n, height, width = self.shape
        generator = generator_for(self.seed, "noise", self.view)
        ratio = self.least + (1 - self.least) * uniform((n,), generator).cpu()
        step = 1 + (uniform((n,), generator).cpu() * (n - 1)).long().clamp(max=n - 2)
        partner = (torch.arange(n, device="cpu") + step) % n
        return PairDraw(partner, whole_image(n, height, width), ratio, (height, width), batch=n)

    @property
    def is_mixed(self) -> Tensor:
        """True where an image has noise, bool (N,)."""
        return self.pairs.is_mixed

    @property
    def owners(self) -> Tensor:
        """Each image and the one that is its noise, int64 (N, 2)."""
        return self.pairs.owners

    @property
    def shares(self) -> Tensor:
        """Their shares of the pixels, (N, 2)."""
        return self.pairs.shares

    def apply(self, images: Tensor) -> Tensor:
        """Mix a batch (N, C, H, W) with itself: lambda x + (1 - lambda) x[partner]."""
        return self.resized(*images.shape[2:]).pairs.apply(images)


@dataclass(frozen=True)
class MixupNoise(Operator):
    """Each view is lambda x + (1 - lambda) x', lambda ~ U(alpha, 1), and the label stays.

    Every view has partners and weights of its own, so two mixtures of one image, with different
    noise, are a positive pair. Source: Verma et al. 2021 (ICML, DACL; arXiv 2011.04419), Sec. 3,
    linear mixup.

    Args:
        dacl_alpha: alpha, the least share of an image's own pixels, in [0, 1]; no code was
            released, and the default is chosen here.

    Raises:
        UserError: if it is out of range.
    """

    dacl_alpha: float = parameter(0.9, setting="dacl_alpha", at_least=0, at_most=1)

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    def mixed_fraction(self) -> float:
        """The expected fraction of images that are changed: all."""
        return float(self.dacl_alpha < 1)

    def describe(self) -> str:
        """The noise of a view."""
        return f"mixup noise of every view apart; the own share is U({self.dacl_alpha:g}, 1)"

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> NoiseDraw:
        """Draw for a batch of shape (N, C, H, W), of any views."""
        drawn_for = checked_shape(shape)
        device = device_of(generator)
        seed = torch.randint(2**31 - 1, (), generator=generator, device=device)
        return NoiseDraw(int(seed), self.dacl_alpha, drawn_for)
