"""Base classes of methods with a projector: trained targets, EMA targets, in-batch negatives."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unmix.distributed import world_size
from unmix.errors import check_number
from unmix.methods.base import InstanceDiscrimination, Method, Progress, l2_normalize
from unmix.momentum import cosine_ema_momentum, ema_update, momentum_copy

__all__ = [
    "InBatchNegatives",
    "JointHead",
    "MomentumTargets",
    "Projected",
    "TrainedTargets",
    "check_sizes",
]


class Projected(Method):
    """A method that trains z = g(f(x)).

    Args:
        backbone: f, images to pooled features (N, D); any module.
        projector: g, features to (N, dim).
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.f, self.g = backbone, projector

    def projections(self, images: Tensor) -> Tensor:
        """z = g(f(x)), before normalization."""
        return self.g(self.f(images))

    @property
    def backbone(self) -> nn.Module:
        """f, which is kept after pretraining."""
        return self.f


class TrainedTargets(Projected):
    """A method without a stop-gradient: the target is the second view's query.

    The query is z unless a subclass overrides it.
    """

    target_queries: Collection[int] = (1,)
    target_gradient = True

    def query(self, view: Tensor, number: int = 0) -> Tensor:
        """z = g(f(x)): (N, dim)."""
        return self.projections(view)

    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Any]:
        """The second view's z, with its gradient."""
        return {1: queries[1]}


class JointHead(TrainedTargets):
    """A method whose projector can process all views in one batch.

    Its batch norm then takes its statistics over the clean views together, as in the whitening
    paper's code; the backbone's stays with one view. A mixture is projected by itself.

    Attributes:
        joint_head: Whether it does.
    """

    joint_head: bool

    def of_output(self, z: Tensor) -> Any:
        """The query, of the projector's output (N, dim)."""
        return z

    def query(self, view: Tensor, number: int = 0) -> Any:
        """Of one view alone."""
        return self.of_output(self.projections(view))

    def queries(
        self,
        views: Sequence[Tensor],
        trained: Collection[int] | None = None,
        constant: Collection[int] = (),
    ) -> dict[int, Any]:
        """Of some views, or of all where they are projected together."""
        if not self.joint_head:
            return super().queries(views, trained, constant)
        outputs = self.g(torch.cat([self.f(view) for view in views]))
        parts = outputs.split([len(view) for view in views])
        return {v: self.of_output(z) for v, z in enumerate(parts)}


class MomentumTargets(Projected):
    """A method whose targets are projections of an EMA copy of f and g.

    Args:
        backbone: f.
        projector: g.
        encoder_momentum: m at the start; it rises to 1 by a cosine over the run.

    Attributes:
        unit_targets: Whether targets are unit vectors.
    """

    unit_targets: bool = False

    def __init__(self, backbone: nn.Module, projector: nn.Module, encoder_momentum: float) -> None:
        super().__init__(backbone, projector)
        check_number(
            "encoder_momentum", encoder_momentum, at_least=0, at_most=1, owner=type(self).__name__
        )
        self.f_k, self.g_k = momentum_copy(self.f), momentum_copy(self.g)
        self.m = encoder_momentum

    @property
    def momentum_backbones(self) -> Sequence[nn.Module]:
        """f_k, the EMA copy of f."""
        return (self.f_k,)

    def begin_step(self, progress: Progress) -> None:
        """Update the momentum encoder."""
        m = self.momentum_at(progress)
        ema_update(self.f_k, self.f, m)
        ema_update(self.g_k, self.g, m)

    def momentum_at(self, progress: Progress) -> float:
        """m of a step, which rises to 1."""
        return cosine_ema_momentum(self.m, progress.fraction)

    @torch.no_grad()
    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Any]:
        """z' = g_k(f_k(x)) of each view that is a target: (N, dim), without a gradient."""
        asked = sorted({pair.target for pair in self.pairs_of(len(views))})
        found = {b: self.g_k(self.f_k(views[b])) for b in asked}
        return {b: l2_normalize(z) for b, z in found.items()} if self.unit_targets else found


class InBatchNegatives(Projected, InstanceDiscrimination):
    """A method whose negatives are the other samples of the batch, of all processes.

    Attributes:
        batch_size: The last argument of `check_batch`; chance level depends on it.
    """

    batch_size: int | None = None
    across_samples = "negatives"

    def check_batch(self, batch_size: int) -> None:
        """A positive needs at least one negative."""
        super().check_batch(batch_size)
        self.batch_size = batch_size

    @property
    def candidates(self) -> int | None:
        """Number of classes of the softmax, one per sample; None before `check_batch`."""
        return None if self.batch_size is None else self.batch_size * world_size()


def check_sizes(owner: str, **sizes: int) -> None:
    """Raise a UserError unless every size, by its parameter, is at least 1."""
    for parameter, size in sizes.items():
        check_number(parameter, size, at_least=1, owner=owner)
