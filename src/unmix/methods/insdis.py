"""InsDis: instance discrimination with a memory bank (Wu et al. 2018)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from unmix.methods.bank import OneBankMethod

__all__ = ["InsDis"]


class InsDis(OneBankMethod):
    """Instance discrimination: every image is a class, its row of the memory bank the class weight.

    Query: v = f(x). Target: the sample's row of the memory bank, among K random rows. Memory: the
    bank, which moves towards the clean features.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        n_data: Number of training samples.
        dim: Length of features and rows.
        temperature: T.
        negatives: K, the number of random rows; by default 4096, or all of fewer samples.
        bank_momentum: Weight of the old row in each update.
        contrast: "softmax" or "nce" with its constant Z.
    """

    def __init__(
        self,
        backbone: nn.Module,
        n_data: int,
        *,
        dim: int = 128,
        temperature: float = 0.07,
        negatives: int | None = None,
        bank_momentum: float = 0.5,
        contrast: Literal["softmax", "nce"] = "nce",
    ) -> None:
        super().__init__(backbone, n_data, dim, temperature, negatives, bank_momentum, contrast)
