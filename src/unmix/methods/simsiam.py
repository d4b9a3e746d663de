"""SimSiam: a predictor and a stop-gradient are enough (Chen & He 2021, arXiv 2011.10566)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.methods.base import Pair, full_precision, l2_normalize
from unmix.methods.projected import Projected, check_sizes

__all__ = ["SimSiam", "SimSiamOutput"]


class SimSiamOutput(NamedTuple):
    """Online-branch output (query) of a view.

    Attributes:
        p: The predictor's output (N, dim).
        z: The projector's output (N, dim).
    """

    p: Tensor
    z: Tensor


class SimSiam(Projected):
    """Simple siamese learning: neither negatives nor a momentum encoder.

    Query: p = h(z), z = g(f(x)), with h the predictor. Target: the other view's z, without its
    gradient. Compared by the negative cosine (Eq. 4), in both directions, half each.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        dim: Length of z and p.
        hidden: Width of the projector's hidden layers.
        layers: Layers of the projector, each with batch norm; 2 for CIFAR-10 in the paper.
        predictor_hidden: Width of the predictor's hidden layer.
        fix_predictor_rate: Keep the predictor's learning rate constant.
    """

    mixes_every_view = True
    pairs: Sequence[Pair] = (Pair(0, 1, 0.5), Pair(1, 0, 0.5))
    target_queries = (0, 1)

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 2048,
        hidden: int = 2048,
        layers: int = 3,
        predictor_hidden: int = 512,
        fix_predictor_rate: bool = True,
    ) -> None:
        check_sizes(
            "SimSiam", dim=dim, hidden=hidden, layers=layers, predictor_hidden=predictor_hidden
        )
        sizes = (feature_dim(backbone), *[hidden] * (layers - 1), dim)
        super().__init__(backbone, mlp(sizes, last="norm"))
        self.h = mlp((dim, predictor_hidden, dim))
        self.fix_predictor_rate = fix_predictor_rate

    def query(self, view: Tensor, number: int = 0) -> SimSiamOutput:
        """p = h(z) and z = g(f(x))."""
        z = self.projections(view)
        return SimSiamOutput(self.h(z), z)

    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, SimSiamOutput],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Tensor]:
        """The views' z, without their gradient."""
        return {b: queries[b].z.detach() for b in (0, 1)}

    def compare(self, query: SimSiamOutput, target: Tensor) -> Tensor:
        """-cos(p, z): losses (N,) in [-1, 1]."""
        with full_precision(query.p):
            return -(l2_normalize(query.p) * l2_normalize(target)).sum(dim=1)

    def constant_lr_modules(self) -> Sequence[nn.Module]:
        """The predictor: its learning rate does not decay (Sec. 4.2)."""
        return (self.h,) if self.fix_predictor_rate else ()
