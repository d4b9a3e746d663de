"""InsDis: instance discrimination with a memory bank (Wu et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from unmix.backbones import Backbone, linear_head
from unmix.methods.bank import BankContrast, BankMethod
from unmix.methods.base import Encoder

__all__ = ["InsDis"]


class InsDis(BankMethod):
    """Instance discrimination: every image is a class of its own, its memory the class's weight.

    Query: v = f(x). Target: the sample's row of the memory bank, among K random rows. Kept: the
    bank, which moves towards the clean features.

    Args:
        backbone: Images to pooled features; has `feature_dim`.
        n_data: Number of training samples.
        dim: Length of features and rows.
        temperature: T.
        negatives: K, random rows a sample is told apart from; by default 4096, or all the others.
        bank_momentum: Share of a row that stays at each update.
        contrast: "softmax" or "nce" with its constant Z.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_data: int,
        *,
        dim: int = 128,
        temperature: float = 0.07,
        negatives: int | None = None,
        bank_momentum: float = 0.5,
        contrast: Literal["softmax", "nce"] = "nce",
    ) -> None:
        super().__init__(n_data, negatives)
        self.f = Encoder(backbone, linear_head(backbone.feature_dim, dim))
        self.T = temperature
        self.contrast = BankContrast(n_data, dim, temperature, bank_momentum, contrast)

    def query(self, view: Tensor, number: int = 0) -> Tensor:
        """v = f(x): unit vectors (N, dim)."""
        return self.f(view)

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """Contrast v with its own row against the negatives' rows: losses (N,)."""
        return self.contrast(query, target)

    def similarities(self, query: Tensor, target: Tensor) -> tuple[Tensor]:
        """Cosines of v with the rows of every sample of the batch, then with its negatives'."""
        return (self.contrast.similarities(query, target),)

    def keep(
        self,
        queries: Mapping[int, Tensor],
        targets: Mapping[int, Any],
        index: Tensor,
    ) -> None:
        """Move the samples' rows towards their clean features."""
        self.contrast.update(queries[0], index)

    def projections(self, images: Tensor) -> Tensor:
        """The head's output, before normalisation."""
        return self.f.head(self.f.backbone(images))

    @property
    def backbone(self) -> nn.Module:
        """The encoder's backbone."""
        return self.f.backbone

    @property
    def chance_loss(self) -> float | None:
        """ln(K + 1) under softmax."""
        return math.log(self.K + 1) if self.contrast.contrast == "softmax" else None
