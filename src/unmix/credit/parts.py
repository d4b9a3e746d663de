"""RegionCL's rule: both parts of a pasted pair are queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unmix.credit.rules import Mixed, Rule
from unmix.credit.sharing import of_partner, per_tensor
from unmix.mixtures import MixtureOperator
from unmix.mixtures.swapping import RegionSwap
from unmix.transfer import to_device

__all__ = ["RegionCL"]


@dataclass(frozen=True)
class RegionCL(Rule):
    """RegionCL: the pasted region and the canvas around it are a query each, of their own images.

    Their features are pooled apart from one forward of the mixture. Beside the queue's keys, the
    other part of the same mixture is a negative of each (without a gradient), where the method has
    negatives. The loss is the mean over both parts of all mixtures.

    Args:
        share: Weight of the parts' loss beside the clean one.
    """

    label: ClassVar[str] = "RegionCL"
    source: ClassVar[str] = "Xu et al. 2022, ECCV (arXiv 2111.12309), Eqs. 4 to 6; as released"
    of_pairs: ClassVar[bool] = True
    in_parts: ClassVar[bool] = True
    mixture: ClassVar[MixtureOperator | None] = RegionSwap()

    def why_not(self, method: Any) -> str | None:
        """A part needs a loss of its own, and negatives one more of them."""
        if method.coupled:
            return "its loss is a scalar per batch, and each part has one of its own"
        contrasts = method.contrastive or method.across_samples == "negatives"
        if contrasts and not method.takes_negatives:
            return (
                "the other part is a negative of each, and its negatives are the batch's or a "
                "bank's; moco and methods without negatives have it"
            )
        return None

    def __call__(self, mixed: Mixed) -> Tensor:
        """The mean of the canvases' and the regions' losses."""
        m = len(mixed.draw.owners)
        canvas = per_tensor(mixed.query, lambda rows: rows[:m])
        region = per_tensor(mixed.query, lambda rows: rows[m:])
        own, other = mixed.draw.owners.unbind(1)
        # An image that is left alone, or covered, has one part.
        there = (mixed.draw.shares > 0).T.flatten()

        def loss(b: int) -> Tensor:
            losses = torch.cat(
                [
                    self.of_part(mixed, canvas, region, of_partner(mixed.targets[b], own)),
                    self.of_part(mixed, region, canvas, of_partner(mixed.targets[b], other)),
                ]
            )
            weights = to_device(there / there.sum(), losses.device, losses.dtype)
            return (weights * losses).sum()

        return self.share * mixed.over_targets(loss)

    def of_part(self, mixed: Mixed, part: Any, rest: Any, target: Any) -> Tensor:
        """The losses of parts (M,), with the rest of their mixtures as negatives."""
        if not mixed.method.takes_negatives:
            return mixed.method.compare(part, target)
        return mixed.method.compare(part, target, rest.detach()[:, None])
