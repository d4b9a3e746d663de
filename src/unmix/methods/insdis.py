"""InsDis: instance discrimination with a memory bank (Wu et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unmix.backbones import Backbone, linear_head
from unmix.errors import UserError, check_choice, check_number
from unmix.losses import nce_contrast, partition_constant, softmax_contrast
from unmix.memory import MemoryBank, draw_candidates
from unmix.methods.base import Encoder, Method, full_precision
from unmix.randomness import on_device

__all__ = ["BankContrast", "InsDis", "count_negatives"]


class BankContrast(nn.Module):
    """A memory bank and how features are compared with its rows.

    Args:
        n_data: Number of samples.
        dim: Length of a feature.
        temperature: T.
        bank_momentum: Share of a row that stays at each update.
        contrast: "softmax" or "nce".
    """

    Z: Tensor

    def __init__(
        self, n_data: int, dim: int, temperature: float, bank_momentum: float, contrast: str
    ) -> None:
        super().__init__()
        check_choice("--contrast", contrast, ("softmax", "nce"))
        check_number("--temperature", temperature, above=0)
        check_number("--dim", dim, at_least=1)
        self.bank = MemoryBank(n_data, dim, bank_momentum)
        self.register_buffer("Z", torch.tensor(-1.0))
        self.T, self.contrast = temperature, contrast

    def forward(self, v: Tensor, candidates: Tensor) -> Tensor:
        """Losses (N,) of features v (N, dim) among the candidates' rows (N, 1 + K)."""
        with full_precision(v):
            scores = self.bank.scores(v, candidates)
        if self.contrast == "softmax":
            return softmax_contrast(scores, self.T)
        if self.Z < 0:
            self.Z.copy_(partition_constant(scores, self.T, len(self.bank)))
        return nce_contrast(scores, self.T, self.Z, len(self.bank))


class InsDis(Method):
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

    views = 1
    pairs = ((0, 0),)

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
        super().__init__()
        negatives = count_negatives(negatives, n_data)
        self.f = Encoder(backbone, linear_head(backbone.feature_dim, dim))
        self.contrast = BankContrast(n_data, dim, temperature, bank_momentum, contrast)
        self.n_data, self.K = n_data, negatives

    def query(self, view: Tensor) -> Tensor:
        """v = f(x): unit vectors (N, dim)."""
        return self.f(view)

    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Tensor]:
        """The rows to compare with: the sample's own, then K negatives, int64 (N, 1 + K)."""
        generator = on_device(generator, index.device)
        return {0: draw_candidates(index, self.K, self.n_data, generator)}

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """Contrast v with its own row against the negatives' rows: losses (N,)."""
        return self.contrast(query, target)

    def keep(
        self,
        queries: Mapping[int, Tensor],
        targets: Mapping[int, Any],
        index: Tensor,
    ) -> None:
        """Move the samples' rows towards their clean features."""
        self.contrast.bank.update(queries[0].detach(), index)

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


def count_negatives(negatives: int | None, n_data: int) -> int:
    """K, the number of negatives; by default 4096, or all the others of fewer samples.

    Raises:
        UserError: unless 1 <= negatives < n_data.
    """
    if n_data < 2:
        raise UserError(
            f"--data: {n_data} image has no other to be told apart from; give 2 or more."
        )
    if negatives is None:
        return min(4096, n_data - 1)
    check_number("--negatives", negatives, at_least=1)
    if negatives >= n_data:
        raise UserError(
            f"--negatives: {negatives} are more than the {n_data - 1} other samples of the data; "
            f"use at most {n_data - 1}."
        )
    return negatives
