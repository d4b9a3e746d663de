"""NNBYOL: BYOL whose targets are nearest neighbors in a queue (solo-learn, after NNCLR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unmix.distributed import gather
from unmix.memory import Queue
from unmix.methods.byol import BYOL
from unmix.methods.projected import check_sizes

__all__ = ["NNBYOL", "NNBYOLTarget"]


class NNBYOLTarget(NamedTuple):
    """The target network's output for a view.

    Attributes:
        neighbor: The queue's nearest neighbor of z', unit vectors (N, dim).
        z: z', unit vectors (N, dim).
    """

    neighbor: Tensor
    z: Tensor


class NNBYOL(BYOL):
    """BYOL with neighbors: predict the nearest neighbor of the target network's projection.

    Query: q(z), z = g(f(x)), with q the predictor. Target: the nearest neighbor of the other view's
    z' in the queue, z' from momentum copies of f and g. Compared by 2 - 2 cos, in both directions,
    summed. Memory: a queue of the first view's z'.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        dim: Length of z.
        hidden: Width of the hidden layer of projector and predictor.
        encoder_momentum: tau of the target network at the start; it rises to 1 by a cosine.
        queue_size: Number of z' in the queue.
    """

    unit_targets = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 256,
        hidden: int = 4096,
        encoder_momentum: float = 0.99,
        queue_size: int = 65536,
    ) -> None:
        check_sizes("NNBYOL", dim=dim, hidden=hidden, queue_size=queue_size)
        super().__init__(backbone, dim=dim, hidden=hidden, encoder_momentum=encoder_momentum)
        self.Q = Queue(queue_size, dim)

    @torch.no_grad()
    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, NNBYOLTarget]:
        """The neighbor of each view's z', and z' for the queue."""
        keys = super().targets(views, queries, index, generator)
        return {b: NNBYOLTarget(self.Q.nearest(z), z) for b, z in keys.items()}

    def compare(self, query: Tensor, target: NNBYOLTarget) -> Tensor:  # type: ignore[override]
        """2 - 2 cos(q(z), nn(z')): losses (N,) in [0, 4]."""
        return super().compare(query, target.neighbor)

    def update_memory(
        self, queries: Mapping[int, Any], targets: Mapping[int, NNBYOLTarget], index: Tensor
    ) -> None:
        """Put the first view's z' of all processes into the queue."""
        self.Q.push(gather(targets[0].z))

    def state(self) -> dict[str, float]:
        """Fill of the queue, in [0, 1]."""
        return {"queue_fill": self.Q.fill}
