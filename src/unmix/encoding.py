"""Encoding of what a step needs: clean views, and mixtures of every view."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from unmix.backbones import pooled_apart
from unmix.methods.base import Method, Pair
from unmix.mixtures import MixtureDraw
from unmix.stages import stage

__all__ = ["Encoded", "clean_queries", "encode_every_crop", "features_for", "query_in_parts"]


class Drawing(Protocol):
    """What draws the mixtures of a view; see `unmix.step.Mixture`."""

    @property
    def needs_features(self) -> bool:
        """Whether the draw needs features of the clean first view."""
        ...

    def draw(
        self, view: Tensor, generator: torch.Generator, features: Tensor | None = None
    ) -> MixtureDraw:
        """Draw for a view."""
        ...


class Encoded(NamedTuple):
    """The mixtures of a view.

    Attributes:
        view: Its number.
        draw: As drawn.
        query: The online branch's output for them.
        pairs: The comparisons that they take part in: (query's view, target's view, share).
        positions: Those by position, likewise.
    """

    view: int
    draw: MixtureDraw
    query: Any
    pairs: Sequence[Pair]
    positions: Sequence[Pair]


def clean_queries(
    method: Method,
    views: Sequence[Tensor],
    pairs: Sequence[Pair],
    of_rule: Collection[int] = (),
    constant: Collection[int] = (),
    gradient: bool | None = None,
) -> dict[int, Any]:
    """The clean queries that a step needs, by view: no others are encoded.

    Args:
        method: The method.
        views: Its clean views.
        pairs: The comparisons of clean queries.
        of_rule: Views whose queries the mixing rule trains.
        constant: Views whose queries are needed without a gradient.
        gradient: Whether targets are trained; by default as the method says.
    """
    gradient = method.target_gradient if gradient is None else gradient
    regularized = method.regularized_views(len(views))
    trained = {pair.query for pair in pairs} | set(of_rule) | set(regularized)
    untrained = set(constant)
    (trained if gradient else untrained).update(method.target_queries)
    return method.queries(views, trained, untrained | set(method.memory_queries))


def encode_every_crop(
    method: Method,
    views: Sequence[Tensor],
    mixture: Drawing,
    pairs: Sequence[Pair],
    generator: torch.Generator,
) -> tuple[dict[int, Any], list[Encoded]]:
    """The clean queries that a step needs, and the mixtures of every view that is a query.

    Each view has a draw of its own, in the order of the views; with nearest neighbors the partners
    are those of the first view. Crops of one size are encoded in one forward where the method does
    that.
    """
    constant = {0} if mixture.needs_features else ()
    trained = method.trains_student_targets
    queries = clean_queries(method, views, pairs, constant=constant, gradient=trained)
    unmixed = method.unmixed_pairs(len(views))
    taken = [pair for pair in method.student_pairs(len(views)) if pair not in unmixed]
    positions = method.position_pairs_of(len(views))
    asked = sorted({pair.query for pair in [*taken, *positions]})
    features = features_for(mixture, queries)
    with stage("mixture"):
        draws = {v: mixture.draw(views[v], generator, features) for v in asked}
        mixed = [draws[v].apply(view) if v in draws else view for v, view in enumerate(views)]
    q_mix = method.student_queries(mixed, asked)
    return queries, [
        Encoded(v, draws[v], q_mix[v], *(of_query(v, some) for some in (taken, positions)))
        for v in asked
    ]


def of_query(view: int, pairs: Sequence[Pair]) -> list[Pair]:
    """The comparisons of a view's query."""
    return [pair for pair in pairs if pair.query == view]


def features_for(mixture: Drawing, queries: Mapping[int, Any]) -> Tensor | None:
    """The clean first view's features, if the mixture is drawn by them."""
    return tree_leaves(queries[0])[0].detach().float() if mixture.needs_features else None


@torch.compiler.disable  # hooks that come and go with the mixture
def query_in_parts(
    method: Method, draw: MixtureDraw, view: Tensor, others: Sequence[Tensor] = ()
) -> Any:
    """The query of each owner's part of the first view's mixtures, part by part: k M rows."""
    with stage("mixture"):
        mixed = draw.apply(view, others)
    with pooled_apart(method.backbone, draw.shares_at):
        return method.query(mixed, 0)
