"""A frozen teacher sees the mixture too: so it has a target of its own, which is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from unmix.credit.rules import Mixed, Rule

__all__ = ["Exact"]


@dataclass(frozen=True)
class Exact(Rule):
    """Exact: the teacher is asked what it says of the mixture, and that is the target.

    No target is shared, whatever the mixture is made of; the price is one more forward of the
    teacher. In image space (`IM`) it replaces the clean loss, as published.

    Args:
        share: Weight of the mixed loss beside the clean one.
        keeps_clean: False: it replaces the clean loss.
    """

    label: ClassVar[str] = "exact target"
    source: ClassVar[str] = "after Beyer et al. 2022, CVPR (arXiv 2106.05237), without a clean loss"
    of_pixels: ClassVar[bool] = True

    keeps_clean: bool = True

    def why_not(self, method: Any) -> str | None:
        """Only a teacher that is frozen, and made for no view, has an answer to any picture."""
        if "exact" not in method.special_rules:
            return "it has no frozen teacher, which could be asked about the mixture"
        return None

    def __call__(self, mixed: Mixed) -> Tensor:
        """Sum of l(q_mix, t_mix) over the targets' views."""
        targets = mixed.targets_of_mixtures()
        return self.share * mixed.over_targets(
            lambda b: mixed.method.compare(mixed.query, targets[b]).mean()
        )
