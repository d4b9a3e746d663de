"""CMC: contrastive multiview coding of the two color components of an image (Tian et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unmix.backbones import HalfEncoders, feature_dim, linear_head
from unmix.errors import check_choice
from unmix.methods.bank import BankContrast, BankMethod
from unmix.methods.base import l2_normalize

__all__ = ["CMC"]


class CMC(BankMethod):
    """Contrastive multiview coding: instance discrimination between lightness and color.

    Query: (l, ab) = (f_l(L), f_ab(ab)), the channels of one view. Target: the sample's rows of
    the two memory banks; l is compared with the bank of ab and ab with the bank of l. Memory: both
    banks.

    Args:
        backbone: Two half-encoders, `HalfEncoders`, or a pair of any modules (l, ab): one of 1
            channel to (N, D), one of 2.
        n_data: Number of training samples.
        view: Color space: "Lab" (L and ab) or "YCbCr" (Y and CbCr).
        dim: Length of features and rows.
        temperature: T.
        negatives: K, the number of random rows; by default 4096, or all of fewer samples.
        bank_momentum: Weight of the old row in each update.
        contrast: "softmax" or "nce" with its constants Z.
    """

    def __init__(
        self,
        backbone: HalfEncoders | tuple[nn.Module, nn.Module],
        n_data: int,
        *,
        view: Literal["Lab", "YCbCr"] = "Lab",
        dim: int = 128,
        temperature: float = 0.07,
        negatives: int | None = None,
        bank_momentum: float = 0.5,
        contrast: Literal["softmax", "nce"] = "nce",
    ) -> None:
        super().__init__(n_data, negatives)
        check_choice("view", view, ("Lab", "YCbCr"), owner="CMC")
        self.color_space = view
        halves = HalfEncoders.of(backbone)
        self.f = halves
        self.head_l = linear_head(feature_dim(halves.l, 1), dim)
        self.head_ab = linear_head(feature_dim(halves.ab, 2), dim)
        self.T = temperature
        options = (n_data, dim, temperature, bank_momentum, contrast)
        self.memory_l, self.memory_ab = BankContrast(*options), BankContrast(*options)
        self.soft_labels = contrast == "softmax"

    @staticmethod
    def build_backbone(name: str, **options: Any) -> nn.Module:
        """Two half-encoders of the named kind, one for each channel group."""
        return HalfEncoders(name, **options)

    def query(self, view: Tensor, number: int = 0) -> tuple[Tensor, Tensor]:
        """(l, ab): unit vectors (N, dim) of the two channel groups."""
        l, ab = self.f(view)
        return l2_normalize(self.head_l(l)), l2_normalize(self.head_ab(ab))

    def compare(self, query: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """Contrast l with the rows of ab, and ab with the rows of l: losses (N,)."""
        l, ab = query
        return self.memory_ab(l, target) + self.memory_l(ab, target)

    def similarities(self, query: tuple[Tensor, Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines of l with rows of ab, and of ab with rows of l."""
        l, ab = query
        return self.memory_ab.similarities(l, target), self.memory_l.similarities(ab, target)

    def update_memory(
        self,
        queries: Mapping[int, tuple[Tensor, Tensor]],
        targets: Mapping[int, Any],
        index: Tensor,
    ) -> None:
        """Move the samples' rows of both banks towards their clean features."""
        l, ab = queries[0]
        self.memory_l.update(l, index)
        self.memory_ab.update(ab, index)

    def projections(self, images: Tensor) -> Tensor:
        """Both heads' outputs side by side, before normalization."""
        l, ab = self.f(images)
        return torch.cat([self.head_l(l), self.head_ab(ab)], dim=1)

    def features(self, images: Tensor) -> Tensor:
        """Both half-encoders' pooled outputs side by side (N, D)."""
        return self.f.features(images)

    @property
    def backbone(self) -> nn.Module:
        """The two half-encoders; their features are put side by side."""
        return self.f

    @property
    def chance_loss(self) -> float | None:
        """2 ln(K + 1) under softmax."""
        softmax = self.memory_l.contrast == "softmax"
        return 2 * math.log(self.K + 1) if softmax else None
