"""Base classes of InsDis, CMC and PIRL: memory banks, with random rows as negatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones import feature_dim, linear_head
from unmix.distributed import gather
from unmix.errors import UserError, check_choice, check_number
from unmix.losses import init_once, nce_contrast, partition_constant, softmax_contrast
from unmix.memory import MemoryBank, draw_candidates
from unmix.methods.base import Encoder, InstanceDiscrimination, Pair, full_precision
from unmix.randomness import on_device

__all__ = ["BankContrast", "BankMethod", "OneBankMethod", "count_negatives"]


class BankMethod(InstanceDiscrimination):
    """A method of one view, whose target is the sample's own row of a memory bank.

    A target is the indices of the rows to compare with: the sample's own, then K negatives.

    Args:
        n_data: Number of training samples.
        negatives: K; by default 4096, or all the others.
    """

    views = 1
    sync_batch_norm = False
    per_image = True
    soft_labels_with = "`contrast=softmax`"
    memory_queries = (0,)
    pairs: Sequence[Pair] = (Pair(0, 0),)

    def __init__(self, n_data: int, negatives: int | None) -> None:
        super().__init__()
        self.n_data, self.K = n_data, count_negatives(negatives, n_data)

    @property
    def kept_images(self) -> int:
        """The rows of the bank."""
        return self.n_data

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


class OneBankMethod(BankMethod):
    """A method whose encoder f has one memory bank, which moves towards its clean features.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        n_data: Number of training samples.
        dim: Length of features and rows.
        temperature: T.
        negatives: K; by default 4096, or all the others.
        bank_momentum: Weight of the old row in each update.
        contrast: "softmax" or "nce".
    """

    def __init__(
        self,
        backbone: nn.Module,
        n_data: int,
        dim: int,
        temperature: float,
        negatives: int | None,
        bank_momentum: float,
        contrast: str,
    ) -> None:
        super().__init__(n_data, negatives)
        self.f = Encoder(backbone, linear_head(feature_dim(backbone), dim))
        self.T = temperature
        self.contrast = BankContrast(n_data, dim, temperature, bank_momentum, contrast)
        self.soft_labels = contrast == "softmax"

    def query(self, view: Tensor, number: int = 0) -> Tensor:
        """v = f(x): unit vectors (N, dim)."""
        return self.f(view)

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """Contrast a feature with the sample's row against the negatives' rows: losses (N,)."""
        return self.contrast(query, target)

    def similarities(self, query: Tensor, target: Tensor) -> tuple[Tensor]:
        """Cosines with the rows of every sample of the batch, then with its negatives'."""
        return (self.contrast.similarities(query, target),)

    def update_memory(
        self, queries: Mapping[int, Tensor], targets: Mapping[int, Any], index: Tensor
    ) -> None:
        """Move the samples' rows toward the first view's clean features."""
        self.contrast.update(queries[0], index)

    def projections(self, images: Tensor) -> Tensor:
        """The head's output, before normalization."""
        return self.f.head(self.f.backbone(images))

    @property
    def backbone(self) -> nn.Module:
        """The encoder's backbone."""
        return self.f.backbone

    @property
    def chance_loss(self) -> float | None:
        """ln(K + 1) under softmax."""
        return math.log(self.K + 1) if self.contrast.contrast == "softmax" else None


class BankContrast(nn.Module):
    """A memory bank and how features are compared with its rows.

    Args:
        n_data: Number of samples.
        dim: Length of a feature.
        temperature: T.
        bank_momentum: Weight of the old row in each update.
        contrast: "softmax" or "nce".
    """

    Z: Tensor

    def __init__(
        self, n_data: int, dim: int, temperature: float, bank_momentum: float, contrast: str
    ) -> None:
        super().__init__()
        check_choice("contrast", contrast, ("softmax", "nce"))
        check_number("temperature", temperature, above=0)
        check_number("dim", dim, at_least=1)
        check_number("bank_momentum", bank_momentum, at_least=0, at_most=1)
        self.bank = MemoryBank(n_data, dim, bank_momentum)
        self.register_buffer("Z", torch.tensor(-1.0))
        self.T, self.contrast = temperature, contrast

    def forward(self, v: Tensor, candidates: Tensor) -> Tensor:
        """Losses (N,) of features v (N, dim) among the candidates' rows (N, 1 + K)."""
        with full_precision(v):
            scores = self.bank.scores(v, candidates)
        if self.contrast == "softmax":
            return softmax_contrast(scores, self.T)
        init_once(self.Z, partition_constant(scores, self.T, len(self.bank)))
        return nce_contrast(scores, self.T, self.Z, len(self.bank))

    def similarities(self, v: Tensor, candidates: Tensor) -> Tensor:
        """Cosines of v with the rows of every sample of the batch, then with its own negatives'."""
        with full_precision(v):
            own = v @ self.bank.rows[gather(candidates[:, 0])].T
            # Of fewer mixtures than samples each has the negatives of its first owner.
            negatives = candidates[: len(v), 1:]
            return torch.cat([own, self.bank.scores(v, negatives)], dim=1)

    def update(self, v: Tensor, index: Tensor) -> None:
        """Move the rows of the samples of all processes toward their clean features."""
        self.bank.update(gather(v), gather(index))


def count_negatives(negatives: int | None, n_data: int) -> int:
    """K, the number of negatives; by default 4096, or all the others of fewer samples.

    Raises:
        UserError: unless 1 <= negatives < n_data.
    """
    if n_data < 2:
        raise UserError(
            f"{n_data} image has no other to be distinguished from; give 2 or more.",
            parameter="n_data",
        )
    if negatives is None:
        return min(4096, n_data - 1)
    check_number("negatives", negatives, at_least=1)
    if negatives >= n_data:
        raise UserError(
            f"{negatives} are more than the {n_data - 1} other samples of the data; use at most "
            f"{n_data - 1}.",
            parameter="negatives",
        )
    return negatives
