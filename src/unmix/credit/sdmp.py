"""SDMP's rule, with losses weighed as in Un-Mix, and with probabilities as released."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unmix.credit.rules import Mixed, Rule, softmax_loss, why_no_softmax
from unmix.credit.sharing import Shares, on_one_device, shared_loss, shared_probability
from unmix.mixtures import MixtureOperator, ResizeMix, Weight

__all__ = ["SDMP", "Between", "SDMPReleased"]


@dataclass(frozen=True)
class SDMP(Rule):
    """SDMP: a mixture is compared with its sources and with the mixtures of the other view.

    The mixture of the same two images has the weight 1 / (1 + c), that of the partner c / (1 + c),
    where c is the content that they have in common. Losses are weighted, as in Un-Mix, so that any
    per-sample loss can be used; the released code weights probabilities, see `SDMPReleased`.

    Args:
        share: Weight of both comparisons together (one half each in the released code).
    """

    label: ClassVar[str] = "SDMP"
    source: ClassVar[str] = "Ren et al. 2022, CVPR; weights and halves as in its code"
    even: ClassVar[bool] = True
    of_pairs: ClassVar[bool] = True
    both_views: ClassVar[bool] = True
    mixture: ClassVar[MixtureOperator | None] = ResizeMix(
        weight=Weight("uniform", low=0.1, high=0.9), per="sample"
    )

    def why_not(self, method: Any) -> str | None:
        """A mixture must have a target, and every sample a loss."""
        if method.per_image:
            return "its targets are indexed by sample id, so a mixture has none"
        if method.coupled:
            return "its loss is a scalar per batch, and the rule needs per-sample weights"
        if method.views < 2:
            return "it has one view of an image, and the rule compares mixtures of two"
        return None

    def __call__(self, mixed: Mixed) -> Tensor:
        """The mean of the loss against the sources and of that against mixtures."""
        between, targets = Between.of(mixed.draw), mixed.targets_of_mixtures()
        source = mixed.over_targets(
            lambda b: self.loss(mixed, mixed.targets[b], mixed.draw), without=0
        )
        mixtures = mixed.over_targets(lambda b: self.loss(mixed, targets[b], between), without=0)
        return self.share * (source + mixtures) / 2

    def loss(self, mixed: Mixed, target: Any, shares: Shares) -> Tensor:
        """The mixtures' loss with one view's targets, a scalar: the weighted sum of losses."""
        return shared_loss(mixed.method.compare, mixed.query, target, shares)


@dataclass(frozen=True)
class SDMPReleased(SDMP):
    """SDMP as its released code has it: -log of the weighted sum of probabilities.

    Where `SDMP` has w (-log p) + (1 - w) (-log p[partner]), the code has
    -log(w p + (1 - w) p[partner]): content with one probable owner is enough for a small loss.

    Args:
        share: Weight of both comparisons together.
    """

    label: ClassVar[str] = "SDMP as released"
    source: ClassVar[str] = "Ren et al. 2022, CVPR; released MoCo v3 code"

    def why_not(self, method: Any) -> str | None:
        """As of SDMP, and there must be probabilities."""
        return super().why_not(method) or why_no_softmax(method, "are no probabilities to weight")

    def loss(self, mixed: Mixed, target: Any, shares: Shares) -> Tensor:
        """-log of the weighted sum of the owners' probabilities."""
        return softmax_loss(mixed, target, shares, shared_probability)


@dataclass(frozen=True)
class Between:
    """How much a mixture has in common with itself and with its partner's mixture.

    Attributes:
        owners: As in `Shares`.
        shares: 1 / (1 + c) and c / (1 + c), with c = min(w, 1 - w[p]) + min(1 - w, w[p]) where the
            partner's partner is the image; else the partner is all that the two have in common.
        per_sample: True.
    """

    owners: Tensor
    shares: Tensor
    per_sample: bool = True

    @classmethod
    def of(cls, draw: Shares) -> Between:
        """From the mixtures' shares of two images."""
        owners, shares = on_one_device(draw)
        own, p = shares[:, 0], owners[:, 1]
        other, mutual = own[p], p[p] == owners[:, 0]
        common = torch.minimum(1 - own, other) + mutual * torch.minimum(own, 1 - other)
        return cls(owners, torch.stack([1 / (1 + common), common / (1 + common)], dim=1))
