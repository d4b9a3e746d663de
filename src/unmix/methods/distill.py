"""Distillation from a frozen teacher: its features (SimReg), or its similarities (SEED)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp_head
from unmix.distributed import gather
from unmix.errors import UserError, check_choice, check_number
from unmix.memory import Queue
from unmix.methods.base import Pair, full_precision, l2_normalize
from unmix.methods.projected import Projected, check_sizes

__all__ = ["MATCHES", "Distill", "regression_head"]

MATCHES = ("features", "similarities")
"""What of a teacher a student can be trained to match."""


class Distill(Projected):
    """Distillation: a small network learns what a trained, frozen one says of the same view.

    Query: q = g(f(x)), a unit vector. Target: t = T(x), the teacher's features of the same pixels,
    a unit vector. Compared by their squared distance, 2 - 2 q.t (Navaneet et al. 2021), or by the
    cross-entropy of their similarities to a queue and to t itself, the teacher's sharper (Fang et
    al. 2021, Eqs. 2 to 5). Memory: with similarities, a queue of t.

    The teacher is not part of the method's state: neither its parameters nor its buffers are among
    those of the method. It moves to other devices with the method.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        teacher: Views to features (N, D_t); any module, such as a `Teacher`. It is frozen, and
            stays in evaluation mode.
        match: What of the teacher is matched: its "features", or its "similarities" to a queue.
        temperature: tau_s, the student's; with similarities, as the next two.
        teacher_temperature: tau_t, the teacher's; below tau_s.
        queue_size: Number of the teacher's features in the queue.
    """

    views: int = 1
    pairs: Sequence[Pair] = (Pair(0, 0),)
    special_rules = frozenset({"exact"})

    teacher: nn.Module

    def __init__(
        self,
        backbone: nn.Module,
        *,
        teacher: nn.Module,
        match: Literal["features", "similarities"] = "features",
        temperature: float = 0.2,
        teacher_temperature: float = 0.01,
        queue_size: int = 65536,
    ) -> None:
        check_choice("match", match, MATCHES, owner="Distill")
        check_sizes("Distill", queue_size=queue_size)
        check_number("temperature", temperature, above=0, owner="Distill")
        check_number("teacher_temperature", teacher_temperature, above=0, owner="Distill")
        _check_apart(backbone, teacher)
        dim, out = feature_dim(backbone), feature_dim(teacher)
        similar = match == "similarities"
        head = mlp_head(dim, dim, out) if similar else regression_head(dim, out)
        super().__init__(backbone, head)
        # Not as a module of this one, or it would be saved, synchronized and trained with it.
        object.__setattr__(self, "teacher", teacher.eval().requires_grad_(False))
        self.match = match
        self.tau_s, self.tau_t = temperature, teacher_temperature
        self.Q = Queue(queue_size, out) if similar else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distill:
        """Move the teacher too; what moves a module calls this."""
        super()._apply(fn, recurse)
        self.teacher._apply(fn)
        return self

    def query(self, view: Tensor, number: int = 0) -> Tensor:
        """q: unit vectors (N, D_t)."""
        return l2_normalize(self.projections(view))

    @torch.no_grad()
    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Tensor]:
        """t of the first view: unit vectors (N, D_t)."""
        return {0: l2_normalize(self.teacher(views[0]))}

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """2 - 2 q.t, or H(p_t, p_s) over the queue and t: losses (N,)."""
        with full_precision(query):
            own = (query * target).sum(dim=1, keepdim=True)
            if self.Q is None:
                return (2 - 2 * own).squeeze(1)
            of_teacher = torch.cat([(target * target).sum(1, True), target @ self.Q.keys.T], dim=1)
            p_t = (of_teacher / self.tau_t).softmax(dim=1)
            of_student = torch.cat([own, query @ self.Q.keys.T], dim=1)
            log_p_s = (of_student / self.tau_s).log_softmax(dim=1)
            return -(p_t * log_p_s).sum(dim=1)

    def update_memory(
        self, queries: Mapping[int, Any], targets: Mapping[int, Tensor], index: Tensor
    ) -> None:
        """Put t of all processes into the queue."""
        if self.Q is not None:
            self.Q.push(gather(targets[0]))

    @property
    def chance_loss(self) -> float | None:
        """ln(K + 1): a uniform distribution over the queue and t."""
        return None if self.Q is None else math.log(len(self.Q) + 1)

    def state(self) -> dict[str, float]:
        """Fill of the queue, in [0, 1]."""
        return {} if self.Q is None else {"queue_fill": self.Q.fill}


def regression_head(n_in: int, n_out: int) -> nn.Sequential:
    """SimReg's head of four layers, n_in to 2 n_in, n_in, 2 n_in and n_out.

    Batch norm and ReLU follow the first and the third (`mlp_arch.py` of its code).
    """
    return nn.Sequential(
        nn.Linear(n_in, 2 * n_in, bias=False),  # what batch norm follows needs none
        nn.BatchNorm1d(2 * n_in),
        nn.ReLU(),
        nn.Linear(2 * n_in, n_in),
        nn.Linear(n_in, 2 * n_in, bias=False),
        nn.BatchNorm1d(2 * n_in),
        nn.ReLU(),
        nn.Linear(2 * n_in, n_out),
    )


def _check_apart(backbone: nn.Module, teacher: nn.Module) -> None:
    """Check that freezing the teacher freezes nothing that is to be trained."""
    if not isinstance(teacher, nn.Module):
        hint = "; a name or a path goes to unmix.pretrain" * isinstance(teacher, str)
        raise UserError(
            f"{teacher!r} is not a torch.nn.Module{hint or '; give a trained network'}.",
            parameter="teacher",
            owner="Distill",
        )
    ours = {id(p) for p in backbone.parameters()} if isinstance(backbone, nn.Module) else set()
    if any(id(p) in ours for p in teacher.parameters()):
        raise UserError(
            "shares parameters with the backbone, which would be frozen too; give a copy.",
            parameter="teacher",
            owner="Distill",
        )
