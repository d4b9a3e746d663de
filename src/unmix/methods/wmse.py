"""W-MSE: whitened features agree between views (Ermolov et al. 2021, arXiv 2007.06346)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.errors import UserError, check_number
from unmix.methods.base import Pair, full_precision, l2_normalize
from unmix.methods.projected import JointHead, check_sizes
from unmix.transfer import to_device

__all__ = ["WMSE", "Grouped", "whiten"]

# Every pair of views once. With four each of the last three is a target twice, so that a mixture
# of the first is compared evenly with the others.
_PAIRS = {2: ((0, 1),), 4: ((0, 1), (0, 2), (0, 3), (1, 2), (2, 3), (3, 1))}


class Grouped(NamedTuple):
    """A target and the sub-batches in which it is whitened.

    Attributes:
        v: The projector's output (N, dim).
        keys: Random numbers (N, iterations); in each iteration sub-batches are cut in their order.
    """

    v: Tensor
    keys: Tensor


class WMSE(JointHead):
    """Whitening: features are scattered by whitening them over a sub-batch, and agree in between.

    Query: v = g(f(x)). Target: the v of another view, with its gradient. Both are whitened over the
    same random sub-batches, and compared by the squared distance of the normalized z (Eqs. 3 to 6):
    a scalar per batch. Memory: none.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        dim: Length of v and z.
        hidden: Width of the projector's hidden layer.
        views: Views of an image, 2 or 4; all pairs of them are compared.
        sub_batch: Samples that are whitened together, or a few more where they do not fit evenly.
        iterations: How often sub-batches are drawn in a step.
        epsilon: Share of the identity in the covariance, in [0, 1]; above 0 it may be singular.
        joint_head: Project all views in one batch, so that the projector's batch norm takes its
            statistics over them, as the paper's code.
    """

    coupled = True
    across_samples = "covariances that features are whitened by"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 64,
        hidden: int = 1024,
        views: int = 2,
        sub_batch: int = 128,
        iterations: int = 1,
        epsilon: float = 0.0,
        joint_head: bool = False,
    ) -> None:
        check_sizes("WMSE", dim=dim, hidden=hidden, iterations=iterations)
        check_number("sub_batch", sub_batch, at_least=2, owner="WMSE")
        check_number("epsilon", epsilon, at_least=0, at_most=1, owner="WMSE")
        if views not in _PAIRS:
            raise UserError(
                f"{views} is out of range; it must be 2 or 4.",
                parameter="views",
                owner="WMSE",
                predicate=f"must be 2 or 4, got {views}",
            )
        super().__init__(backbone, mlp((feature_dim(backbone), hidden, dim)))
        self.views, self.joint_head = views, joint_head
        self.target_queries = range(1, views)
        self.pairs = [Pair(a, b, 1 / len(_PAIRS[views])) for a, b in _PAIRS[views]]
        self.dim, self.sub_batch = dim, sub_batch
        self.iterations, self.epsilon = iterations, epsilon

    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Tensor],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Grouped]:
        """The other views' v, with their gradient, and the step's sub-batches."""
        shape = (len(index), self.iterations)
        keys = torch.rand(shape, generator=generator, device=generator.device)
        keys = to_device(keys, index.device)
        return {b: Grouped(queries[b], keys) for b in range(1, self.views)}

    def compare(self, query: Tensor, target: Grouped) -> Tensor:
        """The mean of 2 - 2 cos(z, z') over samples and iterations: a scalar."""
        n, losses = len(query), []
        for keys in target.keys.unbind(dim=1):
            for rows in keys.argsort().tensor_split(max(1, n // self.sub_batch)):
                z = whiten(query[rows], self.epsilon)
                z_ = whiten(target.v[rows], self.epsilon)
                losses.append(2 - 2 * (l2_normalize(z) * l2_normalize(z_)).sum(dim=1))
        return torch.cat(losses).mean()

    @property
    def smallest_batch(self) -> int:
        """dim + 1, of which the covariance still has full rank."""
        return 2 if self.epsilon else self.dim + 1

    def check_batch(self, batch_size: int) -> None:
        """A sub-batch must have more samples than features, or its covariance is singular."""
        super().check_batch(batch_size)
        for parameter, size in (("sub_batch", self.sub_batch), ("batch_size", batch_size)):
            if size < self.smallest_batch:
                raise UserError(
                    f"the covariance of {self.dim} features over {size} samples is singular; use "
                    f"`{parameter}={self.smallest_batch}` or more, `dim={size - 1}` or less, or "
                    "`epsilon` above 0, such as 0.01.",
                    parameter=parameter,
                )


def whiten(v: Tensor, epsilon: float = 0.0) -> Tensor:
    """z = W (v - mean), so that the covariance over the batch is the identity (Eqs. 4 to 6).

    W is the inverse of the Cholesky factor of the covariance.

    Args:
        v: (N, dim), N above dim unless epsilon is.
        epsilon: Share of the identity in the covariance.

    Returns:
        float32 (N, dim); not a number where the covariance is singular.
    """
    with full_precision(v):
        v = v.float() - v.float().mean(dim=0)
        covariance = v.T @ v / (len(v) - 1)
        identity = torch.eye(v.shape[1], device=v.device)
        # cholesky would make the host wait to say that it failed.
        L, failed = torch.linalg.cholesky_ex((1 - epsilon) * covariance + epsilon * identity)
        L = torch.where(failed == 0, L, torch.nan)
        return torch.linalg.solve_triangular(L, v.T, upper=False).T
