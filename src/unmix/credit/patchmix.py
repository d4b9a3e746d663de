"""PatchMix's rule: soft targets among images, and among mixtures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from unmix.credit.rules import Mixed, Rule, softmax_loss, why_no_softmax
from unmix.credit.sharing import Shares, on_one_device, soft_cross_entropy
from unmix.mixtures import MixtureOperator, PatchMixture

__all__ = ["Among", "PatchMixRule"]


@dataclass(frozen=True)
class PatchMixRule(Rule):
    """PatchMix: a mixture has soft labels over the images in it, and over the mixtures like it.

    Half of the loss is the cross-entropy with the shares as labels over the images, half that over
    the mixtures of the other view, whose labels are what two mixtures have in common,
    T[i, j] = sum over images k of s[i, k] s[j, k]: of m images in equal parts (m - |i - j|) / m^2.

    Args:
        share: Weight of both halves together.
    """

    label: ClassVar[str] = "PatchMix"
    source: ClassVar[str] = "Shen et al. 2023 (arXiv 2306.12243); labels and halves as in its code"
    both_views: ClassVar[bool] = True
    mixture: ClassVar[MixtureOperator | None] = PatchMixture()

    def why_not(self, method: Any) -> str | None:
        """It needs a softmax over images, and targets of mixtures."""
        why = why_no_softmax(method, "is no label to soften")
        if why is None and method.per_image:
            why = "its targets are indexed by sample id, so a mixture has none"
        return why

    def __call__(self, mixed: Mixed) -> Tensor:
        """The mean of both cross-entropies."""
        among, targets = Among.of(mixed.draw, mixed.samples), mixed.targets_of_mixtures()
        # By halves a process has fewer mixtures than images.
        of_mixtures = replace(mixed, samples=len(mixed.draw.owners))

        def loss(samples: Mixed, target: Any, shares: Shares) -> Tensor:
            return softmax_loss(samples, target, shares, soft_cross_entropy)

        images = mixed.over_targets(lambda b: loss(mixed, mixed.targets[b], mixed.draw), without=0)
        mixtures = mixed.over_targets(lambda b: loss(of_mixtures, targets[b], among), without=0)
        return self.share * (images + mixtures) / 2


@dataclass(frozen=True)
class Among:
    """How much mixtures have in common, as labels over all mixtures of the batch.

    Attributes:
        owners: The numbers of all mixtures, int64 (M, M).
        shares: sum over images k of s[i, k] s[j, k], float (M, M), scaled so that rows sum to 1.
        per_sample: True.
    """

    owners: Tensor
    shares: Tensor
    per_sample: bool = True

    @classmethod
    def of(cls, draw: Shares, samples: int) -> Among:
        """From the shares of the images, of which there are `samples`."""
        owners, shares = on_one_device(draw)
        m = len(owners)
        of_images = shares.new_zeros(m, samples).scatter_add_(1, owners, shares)
        common = of_images @ of_images.T
        numbers = torch.arange(m, device=common.device).expand(m, m)
        return cls(numbers, common / common.sum(dim=1, keepdim=True))
