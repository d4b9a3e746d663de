"""TiCo: invariance and covariance contrast (Zhu et al. 2022, arXiv 2206.10698)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.distributed import gather
from unmix.errors import check_number
from unmix.methods.base import full_precision, l2_normalize
from unmix.methods.projected import MomentumTargets, check_sizes

__all__ = ["TiCo"]


class TiCo(MomentumTargets):
    """Views agree, and embeddings keep away from the directions that are crowded already.

    Query: z1 = g(f(x1)), a unit vector. Target: z2 of the other view from momentum copies, a unit
    vector. Compared by 1 - cos. The covariance contrast of the clean queries is in the loss:

        L = 1 - mean z1.z2  +  rho mean z1' C z1,   C <- beta C + (1 - beta) mean z1 z1'

    where C has the present batch in it, without a gradient, as in lightly's code. Memory: C.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        dim: Length of z.
        hidden: Width of the projector's hidden layer.
        covariance: rho, the weight of the covariance contrast; 0 leaves it out.
        covariance_momentum: beta, the weight of the earlier batches in C.
        encoder_momentum: m of the momentum encoder at the start; it rises to 1 by a cosine.
    """

    across_samples = "covariances of features"
    unit_targets = True
    memory_queries: Collection[int] = (0,)
    C: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 256,
        hidden: int = 4096,
        covariance: float = 8.0,
        covariance_momentum: float = 0.9,
        encoder_momentum: float = 0.99,
    ) -> None:
        check_sizes("TiCo", dim=dim, hidden=hidden)
        check_number("covariance", covariance, at_least=0, owner="TiCo")
        check_number(
            "covariance_momentum", covariance_momentum, at_least=0, at_most=1, owner="TiCo"
        )
        super().__init__(backbone, mlp((feature_dim(backbone), hidden, dim)), encoder_momentum)
        self.rho, self.beta = covariance, covariance_momentum
        self.register_buffer("C", torch.zeros(dim, dim))

    def query(self, view: Tensor, number: int = 0) -> Tensor:
        """z1: unit vectors (N, dim)."""
        return l2_normalize(self.projections(view))

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """1 - cos(z1, z2): losses (N,) in [0, 2]."""
        with full_precision(query):
            return 1 - (query * target).sum(dim=1)

    def regularized_views(self, count: int) -> Collection[int]:
        """The clean first view: C is the covariance of images, and mixtures are none."""
        return (0,) if self.rho else ()

    def regularizer(self, queries: Sequence[Tensor], targets: Mapping[int, Any]) -> Tensor:
        """rho z1' C z1, the mean over samples, a scalar."""
        (z,) = queries
        with full_precision(z):
            return self.rho * ((z @ self.covariance_with(z)) * z).sum(dim=1).mean()

    @torch.no_grad()
    def covariance_with(self, z: Tensor) -> Tensor:
        """C with the embeddings (N, dim) of all processes' batches."""
        with full_precision(z):
            z = gather(z)
            return self.beta * self.C + (1 - self.beta) * (z.T @ z / len(z))

    def update_memory(
        self, queries: Mapping[int, Tensor], targets: Mapping[int, Tensor], index: Tensor
    ) -> None:
        """Keep C with the clean first view of this step."""
        self.C.copy_(self.covariance_with(queries[0]))
