"""SwAV: swapped assignments between views (Caron et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.distributed import gather, rank, world_size
from unmix.errors import check_number
from unmix.losses import sinkhorn
from unmix.memory import Queue
from unmix.methods.base import Pair, Progress, full_precision, l2_normalize
from unmix.methods.multicrop import MultiCrop, encode_together

__all__ = ["SwAV", "SwAVOutput"]


class SwAVOutput(NamedTuple):
    """Online-branch output (query) of a view.

    Attributes:
        embedding: z, unit vectors (N, dim).
        scores: z^T C, cosines with the prototypes (N, K).
        codes: q, the assignment to them (N, K), rows sum to 1, without a gradient; None of a small
            crop.
    """

    embedding: Tensor
    scores: Tensor
    codes: Tensor | None


class SwAV(MultiCrop):
    """Swapping assignments: a view's code is predicted from another view (Caron et al. 2020).

    Query and target: z, its scores with the prototypes C, and its code q, by which the batch is
    spread evenly over the prototypes (Eqs. 1 to 5). The two large views predict each other's code,
    small crops predict both. Memory: a queue of embeddings of each large view.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        dim: Length of embeddings and prototypes.
        hidden: Features of the projection head's hidden layer.
        prototypes: K, at least 2. A loss that stays at ln K, chance level, has collapsed.
        temperature: T of the predictions.
        epsilon: Smoothness of the codes; a larger one makes them more even.
        sinkhorn_iterations: Rounds of the Sinkhorn-Knopp algorithm.
        queue_size: Embeddings of earlier steps, of each large view, that the codes are computed
            with; 0 for none.
        queue_from_epoch: Epochs before the queue is filled, which is used once it is full.
        freeze_prototypes_steps: Steps before the prototypes are trained.
    """

    target_queries = (0, 1)
    target_gradient = True
    across_samples = "codes, which spread images over the prototypes"
    special_rules = frozenset({"swav_released"})

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 128,
        hidden: int = 2048,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        queue_size: int = 0,
        queue_from_epoch: int = 15,
        freeze_prototypes_steps: int = 313,
    ) -> None:
        check_number("dim", dim, at_least=1, owner="SwAV")
        check_number("hidden", hidden, at_least=1, owner="SwAV")
        check_number("prototypes", prototypes, at_least=2, owner="SwAV")
        check_number("temperature", temperature, above=0, owner="SwAV")
        check_number("epsilon", epsilon, above=0, owner="SwAV")
        check_number("sinkhorn_iterations", sinkhorn_iterations, at_least=1, owner="SwAV")
        check_number("queue_size", queue_size, at_least=0, owner="SwAV")
        check_number("queue_from_epoch", queue_from_epoch, at_least=0, owner="SwAV")
        check_number("freeze_prototypes_steps", freeze_prototypes_steps, at_least=0, owner="SwAV")
        super().__init__(backbone, mlp((feature_dim(backbone), hidden, dim)))
        self.C = nn.Linear(dim, prototypes, bias=False)
        self.queues = nn.ModuleList(Queue(queue_size, dim) for _ in range(2 if queue_size else 0))
        self.T, self.epsilon, self.iterations = temperature, epsilon, sinkhorn_iterations
        self.queue_from_epoch, self.freeze_steps = queue_from_epoch, freeze_prototypes_steps
        self.queue_full = self.uses_queue = self.frozen = False
        self.fills_queue = True

    def begin_step(self, progress: Progress) -> None:
        """Prototypes are unit vectors; the queue is filled from its epoch on, then used."""
        with torch.no_grad():
            self.C.weight.copy_(F.normalize(self.C.weight, dim=1))
        self.frozen = progress.step < self.freeze_steps
        self.fills_queue = len(self.queues) > 0 and progress.epoch >= self.queue_from_epoch
        # The host waits for this number, but only until the queue is full: for a few steps.
        if self.fills_queue and not self.queue_full:
            self.queue_full = self.fill == 1
        self.uses_queue = self.fills_queue and self.queue_full

    def pairs_of(self, count: int) -> Sequence[Pair]:
        """The large views with each other, small crops with both; the mean over codes and crops."""
        share = 1 / (2 * (count - 1))
        small = [Pair(v, b, share) for v in range(2, count) for b in (0, 1)]
        return [Pair(0, 1, 2 * share), *small]

    def student_pairs(self, count: int) -> Sequence[Pair]:
        """Every crop with the large views' codes but its own; the mean over codes and crops."""
        share = 1 / (2 * (count - 1))
        return [Pair(v, b, share) for b in (0, 1) for v in range(count) if v != b]

    def student_queries(
        self, views: Sequence[Tensor], asked: Collection[int]
    ) -> dict[int, SwAVOutput]:
        """Predictions without codes, as small crops': clean codes alone are predicted."""
        chosen = sorted(asked)
        outputs = encode_together(self.f.backbone, self.f.head, [views[v] for v in chosen])
        return {v: self.predict(z, 2) for v, z in zip(chosen, outputs, strict=True)}

    @property
    def trains_student_targets(self) -> bool:
        """False: of a clean view the code alone is compared, which has no gradient."""
        return False

    def why_not_joint(self) -> str:
        """Codes spread the batch over the prototypes, and mixtures would be in it."""
        return "its codes are computed over all images that are encoded at once"

    def predict(self, output: Tensor, number: int) -> SwAVOutput:
        """From the head's output (N, dim) of view `number`."""
        z = l2_normalize(output)
        with full_precision(z):
            scores = self.C(z)
        return SwAVOutput(z, scores, self.codes(z, number) if number < 2 else None)

    @torch.no_grad()
    def codes(self, z: Tensor, number: int) -> Tensor:
        """q (N, K): all processes' embeddings and the queue's spread evenly over the prototypes."""
        everyone = [gather(z)]
        if self.uses_queue:
            everyone.insert(0, cast(Queue, self.queues[number]).keys)
        with full_precision(z):
            q = sinkhorn(self.C(torch.cat(everyone)), self.epsilon, self.iterations)
        return q[len(q) - (world_size() - rank()) * len(z) :][: len(z)]

    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, SwAVOutput],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, SwAVOutput]:
        """The large views' predictions: codes to predict, and scores that predict the query's."""
        return {b: queries[b] for b in (0, 1)}

    def compare(self, query: SwAVOutput, target: SwAVOutput) -> Tensor:
        """Swapped prediction (N,): the mean of both ways, or one from a small crop (Eq. 2)."""
        assert target.codes is not None
        there = F.cross_entropy(query.scores / self.T, target.codes, reduction="none")
        if query.codes is None:
            return there
        back = F.cross_entropy(target.scores / self.T, query.codes, reduction="none")
        return (there + back) / 2

    @torch.no_grad()
    def update_memory(
        self,
        queries: Mapping[int, SwAVOutput],
        targets: Mapping[int, SwAVOutput],
        index: Tensor,
    ) -> None:
        """Put the clean embeddings of all processes into the queues; frozen prototypes stay."""
        if self.frozen:
            self.C.weight.grad = None
        for b, queue in enumerate(self.queues if self.fills_queue else ()):
            cast(Queue, queue).push(gather(targets[b].embedding))

    @property
    def chance_loss(self) -> float:
        """ln K: a uniform prediction."""
        return math.log(self.C.out_features)

    def state(self) -> dict[str, float]:
        """Fill of the queue, in [0, 1]."""
        return {"queue_fill": self.fill} if len(self.queues) else {}

    @property
    def fill(self) -> float:
        """Fraction of the queues that holds embeddings; the same for both."""
        return cast(Queue, self.queues[0]).fill
