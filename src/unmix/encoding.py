"""Encoding of what a step needs: clean views, and mixtures of every view."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from unmix.backbones import attention_map, pooled_apart
from unmix.credit import per_tensor
from unmix.methods.base import Method, Pair
from unmix.mixtures import MixtureDraw
from unmix.stages import stage

__all__ = [
    "Encoded",
    "clean_queries",
    "encode",
    "encode_every_crop",
    "features_for",
    "query_in_parts",
]


class Drawing(Protocol):
    """What draws the mixtures of a view; see `unmix.step.Mixture`."""

    @property
    def needs_features(self) -> bool:
        """Whether the draw needs features of the clean first view."""
        ...

    @property
    def needs_attention(self) -> bool:
        """Whether it depends on where the encoder looks in the clean first view."""
        ...

    @property
    def one_forward(self) -> bool:
        """Whether clean and mixed images are encoded in one forward."""
        ...

    @property
    def rule(self) -> Any:
        """Weights the loss of the mixtures."""
        ...

    @property
    def others(self) -> Sequence[Tensor]:
        """Further views of the images."""
        ...

    def draw(
        self,
        view: Tensor,
        generator: torch.Generator,
        features: Tensor | None = None,
        attention: Tensor | None = None,
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
    looked: dict[int, Tensor] = {}
    if mixture.needs_attention:
        looked = {v: attention_map(method.backbone, views[v], method.features) for v in asked}
    with stage("mixture"):
        draws = {v: mixture.draw(views[v], generator, features, looked.get(v)) for v in asked}
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


def encode(
    method: Method,
    views: Sequence[Tensor],
    mixtures: Sequence[Drawing],
    pairs: Sequence[Pair],
    of_rule: Collection[int],
    generator: torch.Generator,
) -> tuple[dict[int, Any], list[tuple[Any, MixtureDraw]]]:
    """The clean queries that a step needs, and the query of each mixture with its draw."""
    joint = {number: mixture for number, mixture in enumerate(mixtures) if mixture.one_forward}
    attention = None
    if any(mixture.needs_attention for mixture in mixtures):
        attention = attention_map(method.backbone, views[0], method.features)
    with stage("mixture"):
        draws = {n: each.draw(views[0], generator, None, attention) for n, each in joint.items()}
        mixed = [draws[number].apply(views[0], each.others) for number, each in joint.items()]
    together = torch.cat([views[0], *mixed]) if mixed else views[0]
    constant = {0} if any(mixture.needs_features for mixture in mixtures) else ()
    queries = clean_queries(method, [together, *views[1:]], pairs, of_rule, constant)
    found: dict[int, tuple[Any, MixtureDraw]] = {}
    if mixed:
        sizes = [len(views[0]), *map(len, mixed)]
        rows = [_rows(queries[0], sum(sizes[:i]), sizes[i]) for i in range(len(sizes))]
        queries = queries | {0: rows[0]}
        found = {n: (q, draws[n]) for n, q in zip(joint, rows[1:], strict=True)}
    for number, mixture in enumerate(mixtures):
        if number in joint:
            continue
        with stage("mixture"):
            draw = mixture.draw(views[0], generator, features_for(mixture, queries), attention)
        if mixture.rule.in_parts:
            q_mix = query_in_parts(method, draw, views[0], mixture.others)
        else:
            q_mix = draw.query(method, views[0], mixture.others)
        found[number] = q_mix, draw
    return queries, [found[number] for number in range(len(mixtures))]


def _rows(query: Any, start: int, count: int) -> Any:
    return per_tensor(query, lambda rows: rows[start : start + count])
