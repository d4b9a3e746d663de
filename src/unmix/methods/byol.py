"""BYOL: predict the EMA target network's projection (Grill et al. 2020, arXiv 2006.07733)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.methods.base import Pair, full_precision, l2_normalize
from unmix.methods.projected import MomentumTargets, check_sizes

__all__ = ["BYOL"]


class BYOL(MomentumTargets):
    """Bootstrap your own latent: no negatives; the target network is an EMA of the online one.

    Query: q(z), z = g(f(x)), with q the predictor. Target: z' of the other view, from momentum
    copies of f and g. Compared by 2 - 2 cos (Eq. 2), in both directions, summed. Memory: none.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        dim: Length of z.
        hidden: Width of the hidden layer of projector and predictor.
        encoder_momentum: tau of the target network at the start; it rises to 1 by a cosine.
    """

    mixes_every_view = True
    pairs: Sequence[Pair] = (Pair(0, 1), Pair(1, 0))

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 256,
        hidden: int = 4096,
        encoder_momentum: float = 0.996,
    ) -> None:
        check_sizes("BYOL", dim=dim, hidden=hidden)
        super().__init__(backbone, mlp((feature_dim(backbone), hidden, dim)), encoder_momentum)
        self.q = mlp((dim, hidden, dim))

    def query(self, view: Tensor, number: int = 0) -> Tensor:
        """q(g(f(x))): (N, dim)."""
        return self.q(self.projections(view))

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """2 - 2 cos(q(z), z'): losses (N,) in [0, 4]."""
        with full_precision(query):
            return 2 - 2 * (l2_normalize(query) * l2_normalize(target)).sum(dim=1)
