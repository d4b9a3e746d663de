"""Mixture operators: what is drawn, and with which probabilities.

Each operator draws for a batch shape and a `torch.Generator` and gives a record (see
`unmix.mixtures.draws`) that does the work:

    draw = UnMix().draw(x.shape, generator)
    mixed = draw.apply(x)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from unmix.errors import check_choice, check_number
from unmix.mixtures.basics import anyone, centres, checked_shape
from unmix.mixtures.boxes import clipped_boxes
from unmix.mixtures.draws import Draw, MixtureDraw, PairDraw, whole_image
from unmix.mixtures.own import OwnDraw
from unmix.mixtures.pairing import PAIRINGS, partners
from unmix.randomness import beta

__all__ = [
    "PER",
    "Drawn",
    "GlobalMixture",
    "MixtureOperator",
    "Operator",
    "PairOperator",
    "PlainOperator",
    "RegionMixture",
]

PER = ("batch", "sample")


class Operator(Protocol):
    """Draws what happens to a batch of images."""

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Draw:
        """Draw for a batch of shape (N, C, H, W)."""
        ...


@runtime_checkable
class MixtureOperator(Protocol):
    """Draws label-space mixtures, whose loss is shared among the owners of their images."""

    @property
    def extra(self) -> tuple[tuple[float, float] | None, ...]:
        """For every further view that it needs of each image, the range of its crop's area.

        As shares of the image; None for the run's own range.
        """
        ...

    @property
    def needs_features(self) -> bool:
        """Whether partners are neighbors, so that `draw` needs features of the batch."""
        ...

    @property
    def mixes_pixels(self) -> bool:
        """Whether mixtures are images, which can be encoded in one batch with clean ones."""
        ...

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for a batch of shape (N, C, H, W); features are (N, D), on any device."""
        ...


class PlainOperator:
    """What operators share that need nothing but the batch, unless they say what."""

    @property
    def mixes_pixels(self) -> bool:
        """True: mixtures are images."""
        return True

    @property
    def extra(self) -> tuple[tuple[float, float] | None, ...]:
        """No further view."""
        return ()

    @property
    def needs_features(self) -> bool:
        """False: owners do not depend on features."""
        return False


@dataclass(frozen=True)
class Drawn(PlainOperator):
    """An operator that gives one draw, whatever it is asked to draw for.

    Args:
        mixtures: The draw.
    """

    mixtures: MixtureDraw

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> MixtureDraw:
        """Give the draw."""
        return self.mixtures


class PairOperator:
    """What operators that mix two images share: how partners are found, and how often is drawn.

    A dataclass of its own has `per` ("batch" or "sample": one draw for all, or one for each) and
    `pairing` (see `unmix.mixtures.pairing.partners`).
    """

    per: str
    pairing: str

    @property
    def mixes_pixels(self) -> bool:
        """True: mixtures are images."""
        return True

    @property
    def extra(self) -> tuple[tuple[float, float] | None, ...]:
        """One further view if an image is mixed with its own second view."""
        return (None,) if self.pairing == "second_view" else ()

    @property
    def needs_features(self) -> bool:
        """Whether partners are neighbours."""
        return self.pairing == "neighbor"

    def _check_pairs(self) -> None:
        check_choice("--unmix_per", self.per, PER)
        check_choice("--unmix_pairing", self.pairing, PAIRINGS)

    def _times(self, n: int) -> int:
        """How often is drawn for a batch of n images: once, or for each mixture."""
        if self.per == "batch":
            return 1
        return n // 2 if self.pairing == "halves" else n

    def _partner(
        self, n: int, generator: torch.Generator | None, features: Tensor | None
    ) -> Tensor:
        return partners(self.pairing, n, generator, features)

    def _credited(self, draw: MixtureDraw) -> MixtureDraw:
        """The draw, whose shares are all the sample's if both images are."""
        return OwnDraw(draw) if self.pairing == "second_view" else draw


@dataclass(frozen=True)
class GlobalMixture:
    """Weighted sums of pairs, x_i <- lambda x_i + (1 - lambda) x_j, as mixup.

    Args:
        alpha: lambda ~ Beta(alpha, alpha); above 0.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_number("--g_alpha", self.alpha, above=0)

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> PairDraw:
        """Draw a partner (uniform over the batch, oneself included) and a weight a sample."""
        n, height, width = checked_shape(shape)
        ratio = beta(self.alpha, self.alpha, (n,), generator).cpu()
        partner = anyone(n, generator)
        return PairDraw(partner, whole_image(n, height, width), ratio, (height, width))


@dataclass(frozen=True)
class RegionMixture:
    """A box of one image pasted into another, as CutMix.

    Args:
        beta: lambda ~ Beta(beta, beta), where the box covers 1 - lambda before it is clipped;
            above 0.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        check_number("--r_beta", self.beta, above=0)

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> PairDraw:
        """Draw a partner (uniform over the batch, oneself included) and a box a sample."""
        n, height, width = checked_shape(shape, region=True)
        lam = beta(self.beta, self.beta, (n,), generator).cpu()
        partner = anyone(n, generator)
        box = clipped_boxes(lam, centres(n, height, width, generator), height, width)
        return PairDraw(partner, box, torch.zeros(n), (height, width))
