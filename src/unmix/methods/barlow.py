"""Barlow Twins: cross-correlations near the identity (Zbontar et al. 2021, arXiv 2103.03230)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.distributed import gather_with_gradient
from unmix.errors import check_number
from unmix.methods.base import full_precision
from unmix.methods.projected import TrainedTargets, check_sizes

__all__ = ["BarlowTwins"]

_EPS, _TINY = 1e-5, 1e-20


class BarlowTwins(TrainedTargets):
    """Redundancy reduction: each feature agrees between the views, and with no other feature.

    Query: z = g(f(x1)). Target: the other view's z = g(f(x2)), with its gradient. Compared through
    the features' cross-correlations over the batch (Eqs. 1 and 2): a scalar per batch. Memory:
    none.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        dim: D, the length of z.
        hidden: Width of the projector's two hidden layers.
        off_diagonal: lambda, the weight of the correlations between different features.
        scale: Factor on the loss.
        unbiased: Standardize features by their unbiased deviation and without an epsilon, as the
            code of Mix-BT does; else by the biased one, as the paper's code.

    Attributes:
        penalty: The weight of a squared off-diagonal correlation in the loss, scale * lambda.
    """

    coupled = True
    across_samples = "correlations of features"
    special_rules = frozenset({"mixbt"})

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 8192,
        hidden: int = 8192,
        off_diagonal: float = 0.0051,
        scale: float = 1.0,
        unbiased: bool = False,
    ) -> None:
        check_sizes("BarlowTwins", dim=dim, hidden=hidden)
        check_number("off_diagonal", off_diagonal, at_least=0, owner="BarlowTwins")
        check_number("scale", scale, above=0, owner="BarlowTwins")
        super().__init__(backbone, mlp((feature_dim(backbone), hidden, hidden, dim)))
        self.scale, self.penalty, self.unbiased = scale, scale * off_diagonal, unbiased

    def correlation(self, z_a: Tensor, z_b: Tensor, *, unbiased: bool = False) -> Tensor:
        """C: correlations of the features of two views over the batch (dim, dim) (Eq. 2)."""
        with full_precision(z_a):
            a, b = standardized(z_a, unbiased), standardized(z_b, unbiased)
            return a.T @ b / len(a)

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """Sum of (1 - C_ii)^2 and lambda C_ij^2: a scalar."""
        C = self.correlation(query, target, unbiased=self.unbiased)
        on = C.diagonal()
        off = C.square().sum() - on.square().sum()
        return self.scale * (1 - on).square().sum() + self.penalty * off


def standardized(z: Tensor, unbiased: bool = False) -> Tensor:
    """The rows of all processes, each feature with mean 0 and variance 1; in float32.

    Args:
        z: (N, dim).
        unbiased: With N - 1 in the variance and no epsilon; a feature that is constant becomes 0.
    """
    z = gather_with_gradient(z.float())
    variance, mean = torch.var_mean(z, dim=0, correction=int(unbiased))
    floor = variance.clamp_min(_TINY) if unbiased else variance + _EPS
    return (z - mean) * floor.rsqrt()
