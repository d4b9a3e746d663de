"""NNCLR: nearest neighbors in a queue as positives (Dwibedi et al. 2021, arXiv 2104.14548)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.distributed import gather, gather_with_gradient
from unmix.errors import check_number
from unmix.losses import in_batch_contrast
from unmix.memory import Queue
from unmix.methods.base import Pair, full_precision, l2_normalize
from unmix.methods.projected import InBatchNegatives, check_sizes

__all__ = ["NNCLR", "NNCLROutput"]


class NNCLROutput(NamedTuple):
    """Online-branch output (query) of a view.

    Attributes:
        p: The predictor's output, unit vectors (N, dim).
        z: The projector's output, unit vectors (N, dim).
    """

    p: Tensor
    z: Tensor


class NNCLR(InBatchNegatives):
    """Nearest-neighbor contrastive learning: the positive is the nearest neighbor in a queue.

    Query: p = h(z), z = g(f(x)), with h the predictor. Target: nn(z), the nearest neighbor in the
    queue of the other view's z. InfoNCE of the neighbor with the batch's p (Eq. 3), in both
    directions, half each. Memory: a queue of the clean first view's z.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        dim: Length of z and p.
        hidden: Width of the projector's two hidden layers.
        predictor_hidden: Width of the predictor's hidden layer.
        temperature: T.
        queue_size: Number of z in the queue Q.
    """

    mixes_every_view = True
    pairs: Sequence[Pair] = (Pair(0, 1, 0.5), Pair(1, 0, 0.5))
    target_queries = (0, 1)
    memory_queries = (0,)

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 256,
        hidden: int = 2048,
        predictor_hidden: int = 4096,
        temperature: float = 0.1,
        queue_size: int = 98304,
    ) -> None:
        check_sizes("NNCLR", dim=dim, hidden=hidden, predictor_hidden=predictor_hidden)
        check_number("temperature", temperature, above=0, owner="NNCLR")
        check_number("queue_size", queue_size, at_least=1, owner="NNCLR")
        super().__init__(backbone, mlp((feature_dim(backbone), hidden, hidden, dim), last="affine"))
        self.h = mlp((dim, predictor_hidden, dim))
        self.T, self.Q = temperature, Queue(queue_size, dim)

    def query(self, view: Tensor, number: int = 0) -> NNCLROutput:
        """p = h(z) and z = g(f(x)), each normalized."""
        z = self.projections(view)
        return NNCLROutput(l2_normalize(self.h(z)), l2_normalize(z))

    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, NNCLROutput],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Tensor]:
        """nn(z) of both views: rows of the queue (N, dim)."""
        return {b: self.Q.nearest(queries[b].z) for b in (0, 1)}

    def compare(self, query: NNCLROutput, target: Tensor) -> Tensor:
        """InfoNCE of a neighbor's own p among the p of the batch: losses (N,)."""
        with full_precision(query.p):
            return in_batch_contrast(target, gather_with_gradient(query.p), self.T)

    def similarities(self, query: NNCLROutput, target: Tensor) -> tuple[Tensor]:
        """Cosines of p with the neighbors of every sample."""
        with full_precision(query.p):
            return (query.p @ gather(target).T,)

    def update_memory(
        self, queries: Mapping[int, NNCLROutput], targets: Mapping[int, Any], index: Tensor
    ) -> None:
        """Put the first view's z of all processes into the queue."""
        self.Q.push(gather(queries[0].z))

    @property
    def chance_loss(self) -> float | None:
        """ln N."""
        return None if self.candidates is None else math.log(self.candidates)

    def state(self) -> dict[str, float]:
        """Fill of the queue, in [0, 1]."""
        return {"queue_fill": self.Q.fill}
