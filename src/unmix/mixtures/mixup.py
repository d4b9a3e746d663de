"""MixUp, CutMix, and Un-Mix's choice between them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from unmix.errors import UserError
from unmix.mixtures.boxes import aligned_boxes, clipped_boxes
from unmix.mixtures.draws import MixtureDraw, PairDraw, whole_image
from unmix.mixtures.fields import old_names, parameter
from unmix.mixtures.operators import PER, PairOperator, Per
from unmix.mixtures.sampling import PAIRINGS, Pairing, Weight, checked_shape, coin, random_centers

__all__ = ["CutMix", "GlobalMixture", "MixUp", "RegionMixture", "UnMix"]

U = TypeVar("U", bound="UnMix")


class _WithAlpha(PairOperator):
    """Pairs whose lambda ~ Beta(alpha, alpha), unless `weight` says otherwise."""

    one_draw = "one weight"
    alpha: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and self.weight is not None:
            raise UserError(
                f"{self.alpha:g} and `weight` both say how lambda is distributed; give one of "
                "them.",
                parameter="alpha",
                owner=type(self).__name__,
            )

    @property
    def distribution(self) -> Weight:
        """The distribution of lambda."""
        return self.weight or Weight(alpha=1.0 if self.alpha is None else self.alpha)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for a batch of shape (N, C, H, W); features (N, D) for nearest neighbors."""
        return self._credited(self.pairs(shape, generator, features))

    @abstractmethod
    def pairs(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> PairDraw:
        """Draw partners, boxes and weights; the arguments are those of `draw`."""


@dataclass(frozen=True)
class MixUp(_WithAlpha):
    """Weighted sums of pairs, lambda x_i + (1 - lambda) x_j: global mixtures.

    Source: Zhang et al. 2018 (ICLR), Sec. 2, with one lambda per batch and the partners of the
    released code.

    Args:
        alpha: lambda ~ Beta(alpha, alpha); above 0, by default 1.
        per: One weight per `batch`, or per `sample`.
        pairing: See `unmix.mixtures.sampling.partners`.
        weight: Another distribution of lambda.

    Raises:
        UserError: if a number is out of its range, or a string is none of its choices.
    """

    alpha: float | None = parameter(None, above=0)
    per: Per = parameter("batch", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("permutation", setting="unmix_pairing", choices=PAIRINGS)
    weight: Weight | None = None

    def describe_mixing(self) -> str:
        """A global mixture, and the distribution."""
        return f"global; {self.distribution}"

    def pairs(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> PairDraw:
        """Draw partners and weights."""
        n, height, width = checked_shape(shape)
        ratio = self.distribution.draw(self._times(n), generator)
        partner = self._partner(n, generator, features)
        m = len(partner)
        return PairDraw(
            partner, whole_image(m, height, width), ratio.expand(m), (height, width),
            per_sample=self.per == "sample", batch=n,
        )  # fmt: skip


@dataclass(frozen=True)
class CutMix(_WithAlpha):
    """A box of one image pasted into another: region mixtures.

    The box covers 1 - lambda of the image before it is clipped, and the share is that of the
    pixels, counted. Source: Yun et al. 2019 (ICCV), Sec. 3 and released code.

    Args:
        alpha: lambda ~ Beta(alpha, alpha); above 0, by default 1.
        per: One box per `batch`, or per `sample`.
        pairing: See `unmix.mixtures.sampling.partners`.
        weight: Another distribution of lambda.
        align: Side in pixels of cells, to whose edges boxes are rounded; None for any pixel.

    Raises:
        UserError: if a number is out of its range, or a string is none of its choices.
    """

    by_region: ClassVar[bool] = True

    alpha: float | None = parameter(None, above=0)
    per: Per = parameter("batch", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("permutation", setting="unmix_pairing", choices=PAIRINGS)
    weight: Weight | None = None
    align: int | None = parameter(None, setting="unmix_align", at_least=1)

    def describe_mixing(self) -> str:
        """A region mixture, and the distribution."""
        return f"region; {self.distribution}"

    def pairs(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> PairDraw:
        """Draw partners and boxes."""
        n, height, width = checked_shape(shape, region=True)
        m = self._times(n)
        lam = self.distribution.draw(m, generator)
        partner = self._partner(n, generator, features)
        box = clipped_boxes(lam, random_centers(m, height, width, generator), height, width)
        if self.align is not None:
            box = aligned_boxes(box, height, width, self.align)
        ratio = torch.zeros(len(partner), device="cpu", dtype=torch.float32)
        return PairDraw(
            partner, box.expand(len(partner), 4), ratio, (height, width),
            per_sample=self.per == "sample", batch=n,
        )  # fmt: skip


@dataclass(frozen=True)
class GlobalMixture(MixUp):
    """MixUp with a weight and a random partner per sample, as the image space's rounds draw it."""

    per: Per = parameter("sample", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("random", setting="unmix_pairing", choices=PAIRINGS)


@old_names(beta="alpha")
@dataclass(frozen=True)
class RegionMixture(CutMix):
    """CutMix with a box and a random partner per sample, as the image space's rounds draw it."""

    per: Per = parameter("sample", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("random", setting="unmix_pairing", choices=PAIRINGS)


@old_names(unmix_prob="prob", beta="alpha")
@dataclass(frozen=True)
class UnMix(_WithAlpha):
    """Un-Mix: a global mixture with probability `prob`, else a region mixture.

    Source: Shen et al. 2022 (AAAI), Algorithm 1: one weight and one coin per batch, and the partner
    is the batch in reverse.

    Args:
        prob: Probability P of the global mixture, in [0, 1].
        alpha: lambda ~ Beta(alpha, alpha) for both kinds; above 0, by default 1.
        per: One weight and one coin per `batch`, or per `sample`.
        pairing: See `unmix.mixtures.sampling.partners`.
        weight: Another distribution of lambda.
        global_alpha: The global mixture's own alpha, as EsViT's 0.8; by default that of both kinds.
        align: Side in pixels of cells, to whose edges boxes are rounded; None for any pixel.

    Raises:
        UserError: if a number is out of its range, or a string is none of its choices.
    """

    prob: float = parameter(0.5, setting="unmix_prob", at_least=0, at_most=1)
    alpha: float | None = parameter(None, above=0)
    per: Per = parameter("batch", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("reverse", setting="unmix_pairing", choices=PAIRINGS)
    weight: Weight | None = None
    global_alpha: float | None = parameter(None, above=0)
    align: int | None = parameter(None, setting="unmix_align", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prob == 1 and self.align is not None:
            raise UserError(
                f"{self.align} is for boxes, and a global mixture has none; leave it out.",
                parameter="align",
                owner="UnMix",
            )

    def aligned(self: U, side: int) -> U:
        """The same operator, with boxes of whole cells; a global mixture has none."""
        return self if self.prob == 1 else super().aligned(side)

    @property
    def one_draw(self) -> str:  # type: ignore[override]
        """One weight, and a coin if it decides."""
        return "one weight" if self.prob in (0, 1) else "one weight and one coin"

    @property
    def mixes_regions(self) -> bool:
        """Whether every mixture is a region mixture of two images."""
        return self.prob == 0 and self.pairing != "second_view"

    def describe_mixing(self) -> str:
        """Which mixture, and the distribution."""
        if self.prob in (0, 1):
            return f"{'global' if self.prob else 'region'}; {self.distribution}"
        own = "" if self.global_alpha is None else f" ({Weight(alpha=self.global_alpha)})"
        return f"global{own} with probability {self.prob:g}, else region; {self.distribution}"

    def pairs(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> PairDraw:
        """Draw partners, boxes and weights."""
        n, height, width = checked_shape(shape, region=self.prob < 1)
        m = self._times(n)
        ratio = self.distribution.draw(m, generator)
        is_global = coin(m, self.prob, generator)
        center = random_centers(m, height, width, generator)
        region = clipped_boxes(ratio, center, height, width)
        if self.align is not None:
            region = aligned_boxes(region, height, width, self.align)
        box = torch.where(is_global[:, None], whole_image(m, height, width), region)
        if self.global_alpha is not None:
            ratio = Weight(alpha=self.global_alpha).draw(m, generator)
        ratio = torch.where(is_global, ratio, torch.zeros_like(ratio))
        partner = self._partner(n, generator, features)
        return PairDraw(
            partner, box.expand(len(partner), 4), ratio.expand(len(partner)), (height, width),
            per_sample=self.per == "sample", batch=n,
        )  # fmt: skip
