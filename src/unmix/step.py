"""The loss of one step: a method's queries and targets, and a mixture's share of the credit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmix.credit import per_tensor, shared_loss
from unmix.methods.base import Method
from unmix.mixtures.draws import MixtureDraw

__all__ = ["Objective", "objective"]


@dataclass(frozen=True)
class Objective:
    """A step's loss and what was computed for it.

    Attributes:
        loss: What to minimise, a scalar.
        clean: The part of the clean views, a detached scalar.
        mixed: The part of the mixtures, a detached scalar; None without them.
        keep: Call it after the backward pass: the method keeps its clean queries and targets.
    """

    loss: Tensor
    clean: Tensor
    mixed: Tensor | None
    keep: Callable[[], None]


def objective(
    method: Method,
    views: Sequence[Tensor],
    index: Tensor,
    generator: torch.Generator,
    draw: MixtureDraw | None = None,
    credit: Callable[[Any, Any, Any, MixtureDraw], Tensor] = shared_loss,
    joint: bool = False,
) -> Objective:
    """The loss of clean views, plus that of the first view's mixtures if a draw is given.

    L = sum over the method's pairs (a, b) of
        l(q_a, t_b)  +  w l(q_mix, t_b)  +  (1 - w) l(q_mix, t_b[p]).

    The first view is mixed, as published, and its mixture is encoded once, also where the method is
    symmetric. Targets come from clean views only.

    Args:
        method: The method.
        views: Its clean views, `method.views` tensors (N, C, H, W).
        index: The samples' numbers in the data set, int64 (N,).
        generator: For what the method draws (negatives, shuffled batch norm).
        draw: The label-space mixture, or None.
        credit: The rule by which a mixture's loss is shared.
        joint: Encode the first view and its mixtures in one forward. Batch norm then takes its
            statistics over both, while the published code encodes them apart.
    """
    if draw is None:
        queries, q_mix = method.queries(views), None
    elif joint:
        queries, q_mix = jointly(method, views, draw.apply(views[0]))
    else:
        queries, q_mix = method.queries(views), method.query(draw.apply(views[0]))
    targets = method.targets(views, queries, index, generator)
    clean = sum_of(method.compare(queries[a], targets[b]).mean() for a, b in method.pairs)
    loss, mixed = clean, None
    if draw is not None:
        mixed = sum_of(credit(method.compare, q_mix, targets[b], draw) for _, b in method.pairs)
        loss = clean + mixed
    return Objective(
        loss,
        clean.detach(),
        None if mixed is None else mixed.detach(),
        lambda: method.keep(queries, targets, index),
    )


def jointly(method: Method, views: Sequence[Tensor], mixed: Tensor) -> tuple[dict[int, Any], Any]:
    """The queries by view, and that of the mixtures, which one forward encodes with view 0."""
    both = method.query(torch.cat([views[0], mixed]))
    n = len(mixed)
    queries = {0: per_tensor(both, lambda rows: rows[:n])}
    for a in sorted({a for a, _ in method.pairs} - {0}):
        queries[a] = method.query(views[a])
    return queries, per_tensor(both, lambda rows: rows[n:])


def sum_of(losses: Any) -> Tensor:
    """The sum of an iterable of scalars, as a tensor."""
    return torch.stack(list(losses)).sum()
