"""VICReg: variance, invariance, covariance (Bardes et al. 2022, arXiv 2105.04906)."""

from __future__ import annotations

from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.distributed import gather_with_gradient
from unmix.errors import check_number
from unmix.methods.base import full_precision
from unmix.methods.projected import TrainedTargets, check_sizes

__all__ = ["VICReg"]

_EPS = 1e-4


class VICReg(TrainedTargets):
    """Three terms keep features equal between views, spread within the batch, and decorrelated.

    Query: z = g(f(x1)). Target: the other view's z' = g(f(x2)), with its gradient. Compared by the
    sum of the three terms (Eq. 6): a scalar per batch. Memory: none.

    As in the released code the invariance is a mean over the features as well, and the variance
    terms of the two branches are averaged.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        dim: d, the length of z.
        hidden: Width of the expander's two hidden layers.
        invariance: lambda, the weight of the squared distance between views.
        variance: mu, the weight of the hinge on the standard deviations.
        covariance: nu, the weight of the squared covariances.
    """

    coupled = True
    across_samples = "variances and covariances of features"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 8192,
        hidden: int = 8192,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        check_sizes("VICReg", dim=dim, hidden=hidden)
        weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        for parameter, weight in weights.items():
            check_number(parameter, weight, at_least=0, owner="VICReg")
        super().__init__(backbone, mlp((feature_dim(backbone), hidden, hidden, dim)))
        self.lambda_, self.mu, self.nu = invariance, variance, covariance

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """lambda s(z, z') + mu [v(z) + v(z')] / 2 + nu [c(z) + c(z')]: a scalar."""
        with full_precision(query):
            z, z_ = query.float(), target.float()
            s = (z - z_).square().mean()
            z, z_ = centered(z), centered(z_)
            v, c = hinge(z) + hinge(z_), covariances(z) + covariances(z_)
            return self.lambda_ * s + self.mu * v / 2 + self.nu * c


def centered(z: Tensor) -> Tensor:
    """The rows of all processes, each feature with mean 0."""
    z = gather_with_gradient(z)
    return z - z.mean(dim=0)


def hinge(z: Tensor) -> Tensor:
    """v(z): how much the standard deviations of centered features are below 1 (Eqs. 1 and 2)."""
    return (1 - (z.var(dim=0) + _EPS).sqrt()).relu().mean()


def covariances(z: Tensor) -> Tensor:
    """c(z): the squared covariances of different centered features, over d (Eqs. 3 and 4)."""
    C = z.T @ z / (len(z) - 1)
    return (C.square().sum() - C.diagonal().square().sum()) / z.shape[1]
