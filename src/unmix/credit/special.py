"""Rules that were made for one method: Mix-BT for Barlow Twins, the released code of SwAV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unmix.credit.rules import Mixed, Rule
from unmix.credit.sharing import of_partner
from unmix.mixtures import MixtureOperator, UnMix
from unmix.mixtures.fields import parameter
from unmix.transfer import to_device

__all__ = ["MixBT", "SwAVReleased"]


@dataclass(frozen=True)
class MixBT(Rule):
    """Mix-BT: the mixture's correlations with both views are the mixture of the views'.

    As released, features are standardized here by their unbiased standard deviation, without an
    epsilon, and the products are divided by N, whatever Barlow Twins itself does.

    Args:
        share: Weight of the penalty, beside Barlow Twins' own weight of the off-diagonal part.
    """

    label: ClassVar[str] = "Mix-BT"
    source: ClassVar[str] = "Bandara et al. 2023 (arXiv 2312.02151); as released"
    partner_view: ClassVar[int] = 1
    of_pairs: ClassVar[bool] = True
    both_views: ClassVar[bool] = True
    mixture: ClassVar[MixtureOperator | None] = UnMix(1.0, pairing="permutation")

    share: float = parameter(5.0, setting="unmix_share", above=0)

    def why_not(self, method: Any) -> str | None:
        """Only Barlow Twins compares correlations."""
        if "mixbt" not in method.special_rules:
            return "it has no cross-correlation of features, which the rule is about"
        return None

    def clean_queries(self, pairs: Sequence[tuple[int, int, float]]) -> set[int]:
        """Both views'."""
        return {0, 1}

    def __call__(self, mixed: Mixed) -> Tensor:
        """The squared distance of the correlations from their targets."""
        method, m = mixed.method, mixed.query
        a, b = mixed.queries[0], mixed.queries[1]
        other = of_partner(b, mixed.draw.owners[:, 1])
        w = to_device(mixed.draw.shares[0, 0], a.device)
        total = a.new_zeros((), dtype=torch.float32)
        for z in (a, b):
            found, own, others = (method.correlation(x, z, unbiased=True) for x in (m, a, other))
            total = total + (found - (w * own + (1 - w) * others)).square().sum()
        return self.share * method.penalty * total


@dataclass(frozen=True)
class SwAVReleased(Rule):
    """Un-Mix for SwAV as its released code has it, which differs from the authors' formula.

    Only the mixture's assignment is exchanged for its partner's. So its own prediction has the
    weight w + (1 - w) = 1 on the image's assignment, and none on the partner's.

    Args:
        share: Weight of the mixed loss beside the clean one.
    """

    label: ClassVar[str] = "SwAV as released"
    source: ClassVar[str] = "Un-Mix, released SwAV code; the formula is in its issue 7"
    of_pairs: ClassVar[bool] = True

    def why_not(self, method: Any) -> str | None:
        """Only SwAV assigns codes to mixtures."""
        if "swav_released" not in method.special_rules:
            return "it reproduces an error of the released SwAV code, and this method has no codes"
        return None

    def __call__(self, mixed: Mixed) -> Tensor:
        """The loss with the mixtures' codes, and with their partners'."""
        p = mixed.draw.owners[:, 1]
        exchanged = mixed.query._replace(codes=of_partner(mixed.query.codes, p))
        w = to_device(mixed.draw.shares[:, 0], mixed.query.scores.device)

        def loss(b: int) -> Tensor:
            own = mixed.method.compare(mixed.query, mixed.targets[b])
            other = mixed.method.compare(exchanged, mixed.targets[b])
            return (w * own + (1 - w) * other).mean()

        return self.share * mixed.over_targets(loss)
