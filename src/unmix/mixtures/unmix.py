"""Un-Mix: a global or a region mixture, by a coin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmix.errors import check_number
from unmix.mixtures.basics import centres, checked_shape, coin
from unmix.mixtures.boxes import clipped_boxes
from unmix.mixtures.draws import MixtureDraw, PairDraw, whole_image
from unmix.mixtures.operators import PairOperator
from unmix.mixtures.weights import Weight

__all__ = ["UnMix"]


@dataclass(frozen=True)
class UnMix(PairOperator):
    """Label space: the mixtures whose loss is shared between their two images.

    One coin decides between a global mixture (probability `unmix_prob`) and a region mixture.
    Source: Shen et al. 2022 (AAAI), Algorithm 1: one weight and one coin a batch, the partner is
    the batch reversed.

    Args:
        unmix_prob: Probability P of the global mixture, in [0, 1]; the rest are region mixtures.
        beta: lambda ~ Beta(beta, beta) for both kinds; above 0.
        per: One weight and one coin for a `batch`, or for each `sample`.
        pairing: The partner is the batch in `reverse` (i with N - 1 - i; the middle image of an odd
            batch mixes with itself), by a random `permutation`, or another of
            `unmix.mixtures.pairing.PAIRINGS`.
        weight: Another law of lambda than Beta(beta, beta).

    Raises:
        UserError: if a number is out of its range, or a word unknown.
    """

    unmix_prob: float = 0.5
    beta: float = 1.0
    per: Literal["batch", "sample"] = "batch"
    pairing: str = "reverse"
    weight: Weight | None = None

    def __post_init__(self) -> None:
        check_number("--unmix_prob", self.unmix_prob, at_least=0, at_most=1)
        check_number("--beta", self.beta, above=0)
        self._check_pairs()

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for a batch of shape (N, C, H, W); features (N, D) for pairing by neighbours."""
        n, height, width = checked_shape(shape, region=self.unmix_prob < 1)
        m = self._times(n)
        ratio = (self.weight or Weight(beta=self.beta)).draw(m, generator)
        is_global = coin(m, self.unmix_prob, generator)
        region = clipped_boxes(ratio, centres(m, height, width, generator), height, width)
        box = torch.where(is_global[:, None], whole_image(m, height, width), region)
        ratio = torch.where(is_global, ratio, torch.zeros(()))
        partner = self._partner(n, generator, features)
        pairs = PairDraw(
            partner,
            box.expand(len(partner), 4),
            ratio.expand(len(partner)),
            (height, width),
            per_sample=self.per == "sample",
            batch=n,
        )
        return self._credited(pairs)
