"""ReSSL: the relation of a view to other images (Zheng et al. 2021, arXiv 2107.09282)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.distributed import gather
from unmix.errors import check_number
from unmix.memory import Queue
from unmix.methods.base import Progress, full_precision, l2_normalize
from unmix.methods.projected import MomentumTargets, check_sizes

__all__ = ["ReSSL"]


class ReSSL(MomentumTargets):
    """Relational learning: similarities to a queue agree between a strong and a weak view.

    Query: z1 = g(f(x1)) of the strongly augmented view, a unit vector. Target: z2 of the weakly
    augmented one from momentum copies, a unit vector. Compared by the cross-entropy of their
    distributions over the queue, the target's sharper (Eqs. 3 to 5). Memory: a queue of z2.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        dim: Length of z.
        hidden: Width of the projector's hidden layer.
        temperature: tau_s, the query's.
        teacher_temperature: tau_t, the target's; below tau_s.
        queue_size: Number of z2 in the queue.
        encoder_momentum: m of the momentum encoder at the start; it rises to 1 by a cosine.
        constant_momentum: Keep m as it is, as in the paper's code.
    """

    unit_targets = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 512,
        hidden: int = 4096,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        queue_size: int = 131072,
        encoder_momentum: float = 0.999,
        constant_momentum: bool = False,
    ) -> None:
        check_sizes("ReSSL", dim=dim, hidden=hidden, queue_size=queue_size)
        check_number("temperature", temperature, above=0, owner="ReSSL")
        check_number("teacher_temperature", teacher_temperature, above=0, owner="ReSSL")
        projector = mlp((feature_dim(backbone), hidden, dim), batch_norm=False)
        super().__init__(backbone, projector, encoder_momentum)
        self.tau_s, self.tau_t = temperature, teacher_temperature
        self.Q = Queue(queue_size, dim)
        self.constant_momentum = constant_momentum

    def momentum_at(self, progress: Progress) -> float:
        """m of a step."""
        return self.m if self.constant_momentum else super().momentum_at(progress)

    def query(self, view: Tensor, number: int = 0) -> Tensor:
        """z1: unit vectors (N, dim)."""
        return l2_normalize(self.projections(view))

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """H(p2, p1) over the queue: losses (N,)."""
        with full_precision(query):
            p_2 = (target @ self.Q.keys.T / self.tau_t).softmax(dim=1)
            log_p_1 = (query @ self.Q.keys.T / self.tau_s).log_softmax(dim=1)
            return -(p_2 * log_p_1).sum(dim=1)

    def update_memory(
        self, queries: Mapping[int, Any], targets: Mapping[int, Tensor], index: Tensor
    ) -> None:
        """Put z2 of all processes into the queue."""
        self.Q.push(gather(targets[1]))

    @property
    def chance_loss(self) -> float:
        """ln K: a uniform distribution over the queue."""
        return math.log(len(self.Q))

    def state(self) -> dict[str, float]:
        """Fill of the queue, in [0, 1]."""
        return {"queue_fill": self.Q.fill}
