"""The loss of one step: a method's queries and targets, and a mixture's share of the credit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from unmix.credit import Mixed, Rule, UnMixRule, per_tensor
from unmix.distributed import rank, world_size
from unmix.methods.base import Method, Pair
from unmix.mixtures import ManifoldMixture, MixtureOperator, mixed_at
from unmix.mixtures.draws import Draw, MixtureDraw
from unmix.randomness import generator_for

__all__ = [
    "Mixture",
    "Objective",
    "apart",
    "draw_mixture",
    "mix_views",
    "objective",
    "step_generator",
]


@dataclass(frozen=True)
class Mixture:
    """What is mixed in a step, and who gets the credit.

    Attributes:
        draw: The label-space draw, or what gives it from features of the clean first view, (N, D).
        rule: Shares the loss.
        others: Further views of the images, from which the other owners' pixels come.
        joint: Encode the first view and its mixtures in one forward, so that batch norm takes its
            statistics over both; None is as the rule was released: apart, but of MixCo. It needs
            pixels that are mixed, and not by what an encoder says of them.
        within: Mixes inside the method's backbone instead of its pixels: gives for a draw a context
            in which the first view's query is that of the mixtures.
    """

    draw: MixtureDraw | Callable[[Tensor], MixtureDraw]
    rule: Rule = UnMixRule()  # noqa: RUF009 - frozen
    others: Sequence[Tensor] = ()
    joint: bool | None = None
    within: Callable[[MixtureDraw], AbstractContextManager[Any]] | None = None

    @property
    def one_forward(self) -> bool:
        """Whether clean and mixed images are encoded in one forward."""
        joint = self.rule.joint if self.joint is None else self.joint
        possible = self.within is None and not callable(self.draw)
        return joint and possible and self.rule.keeps_clean


@dataclass(frozen=True)
class Objective:
    """A step's loss and what was computed for it.

    Attributes:
        loss: What to minimise, a scalar.
        clean: The part of the clean views, a detached scalar; None if mixtures replace all of it.
        mixed: The part of the mixtures, a detached scalar; None without them.
        update_memory: Call it after the backward pass: clean queries and targets are remembered.
    """

    loss: Tensor
    clean: Tensor | None
    mixed: Tensor | None
    update_memory: Callable[[], None]


def step_generator(seed: int, step: int, *place: int | str) -> torch.Generator:
    """Of what is drawn in a step; another one in each process, for their images are others.

    Args:
        seed: Of the run.
        step: Steps that are done.
        place: What tells several draws of a step apart.
    """
    own = () if world_size() == 1 else (rank(),)
    return generator_for(seed, "step", step, *place, *own)


def mix_views(draw: Draw, views: Sequence[Tensor]) -> list[Tensor]:
    """Apply one draw to all views: the same partners, weights and, to scale, the same boxes.

    Args:
        draw: Made for the first view's size.
        views: (N, C, H, W), of any sizes.
    """
    size = views[0].shape[2:]
    return [
        (draw if view.shape[2:] == size else draw.resized(*view.shape[2:])).apply(view)  # type: ignore[attr-defined]
        for view in views
    ]


def apart(
    views: Sequence[Tensor], operator: MixtureOperator | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The method's views, and those that are there for the mixture only."""
    extra = len(operator.extra) if operator is not None else 0
    return list(views[: len(views) - extra]), list(views[len(views) - extra :])


def draw_mixture(
    method: Method,
    views: Sequence[Tensor],
    others: Sequence[Tensor],
    operator: MixtureOperator,
    rule: Rule,
    generator: torch.Generator,
    *,
    seed: int,
    step: int,
    joint: bool | None = None,
) -> Mixture:
    """The label-space mixture of a step.

    Args:
        method: The method.
        views: Its clean views, tensors (N, C, H, W).
        others: Views that are there for the mixture only.
        operator: Draws the mixture.
        rule: Shares its loss.
        generator: Of the step.
        seed: Of the run.
        step: Steps that are done.
        joint: See `Mixture`.
    """
    if method.coupled and world_size() > 1:
        # The loss is one number for the batches of all processes, and so is the weight.
        generator = generator_for(seed, "mixture", step)
    draw: Any = partial(operator.draw, views[0].shape, generator)
    within = None
    if isinstance(operator, ManifoldMixture):
        within = partial(mixed_at, method, operator.layer)
    if rule.partner_view:
        others = [views[rule.partner_view]]
    return Mixture(draw if operator.needs_features else draw(), rule, others, joint, within)


def objective(
    method: Method,
    views: Sequence[Tensor],
    index: Tensor,
    generator: torch.Generator,
    mixture: Mixture | None = None,
) -> Objective:
    """The loss of clean views, with that of the first view's mixtures if there are any.

    L = sum over the method's pairs (a, b) of
        l(q_a, t_b)  +  w l(q_mix, t_b)  +  (1 - w) l(q_mix, t_b[p])

    under Un-Mix; see `unmix.credit` for the other rules. The first view is mixed, as published, and
    its mixture is encoded once, also where the method is symmetric. Targets come from clean views
    only (but for SDMP), and so does what is kept.

    Args:
        method: The method.
        views: Its clean views, tensors (N, C, H, W); small crops come last.
        index: The samples' numbers in the data set, int64 (N,).
        generator: For what the method draws (negatives, shuffled batch norm).
        mixture: The label-space mixture, or None.
    """
    pairs = method.pairs_of(len(views))
    if mixture is None:
        queries = clean_queries(method, views, pairs)
        targets = method.targets(views, queries, index, generator)
        clean = clean_loss(method, pairs, queries, targets)
        update = partial(method.update_memory, queries, targets, index)
        return Objective(clean, clean.detach(), None, update)
    rule = mixture.rule
    stay = pairs if rule.keeps_clean else method.unmixed_pairs(len(views))
    taken = pairs if rule.keeps_clean else [pair for pair in pairs if pair not in stay]
    queries, q_mix, draw = encode(method, views, mixture, stay, rule.clean_queries(taken))
    targets = method.targets(views, queries, index, generator)
    # Before the mixtures: NCE's constant is what the first comparison says.
    beside = clean_loss(method, stay, queries, targets) if stay else None

    def targets_of_mixtures() -> Mapping[int, Any]:
        mixed = [draw.apply(view) for view in views[: method.views]]
        others = [v for v in method.target_queries if v != 0]
        with nullcontext() if method.target_gradient else torch.no_grad():
            q = {0: q_mix, **{v: method.query(mixed[v], v) for v in others}}
        return method.targets(mixed, q, index, generator)

    mixed = rule(
        Mixed(method, draw, q_mix, queries, targets, taken, targets_of_mixtures, len(views[0]))
    )
    update = partial(method.update_memory, queries, targets, index)
    if beside is None:
        return Objective(mixed, None, mixed.detach(), update)
    return Objective(beside + mixed, beside.detach(), mixed.detach(), update)


def clean_loss(
    method: Method, pairs: Sequence[Pair], queries: Mapping[int, Any], targets: Mapping[int, Any]
) -> Tensor:
    """The sum of the pairs' losses, each by its share."""
    losses = [share * method.compare(queries[a], targets[b]).mean() for a, b, share in pairs]
    return torch.stack(losses).sum()


def clean_queries(
    method: Method,
    views: Sequence[Tensor],
    pairs: Sequence[Pair],
    of_rule: Collection[int] = (),
    constant: Collection[int] = (),
) -> dict[int, Any]:
    """The clean queries that a step needs, by view: no others are encoded.

    Args:
        method: The method.
        views: Its clean views.
        pairs: The comparisons of clean queries.
        of_rule: Views whose queries the mixing rule trains.
        constant: Views whose queries are needed without a gradient.
    """
    trained, untrained = {pair.query for pair in pairs} | set(of_rule), set(constant)
    (trained if method.target_gradient else untrained).update(method.target_queries)
    return method.queries(views, trained, untrained | set(method.memory_queries))


def encode(
    method: Method,
    views: Sequence[Tensor],
    mixture: Mixture,
    pairs: Sequence[Pair],
    of_rule: Collection[int],
) -> tuple[dict[int, Any], Any, MixtureDraw]:
    """The clean queries that a step needs, the first view's mixtures' query, and their draw."""
    if not callable(mixture.draw):
        draw = mixture.draw
        if mixture.one_forward:
            n, mixed = len(views[0]), draw.apply(views[0], mixture.others)
            both = [torch.cat([views[0], mixed]), *views[1:]]
            queries = clean_queries(method, both, pairs, of_rule)
            q_mix = per_tensor(queries[0], lambda rows: rows[n:])
            return queries | {0: per_tensor(queries[0], lambda rows: rows[:n])}, q_mix, draw
        queries = clean_queries(method, views, pairs, of_rule)
    else:
        queries = clean_queries(method, views, pairs, of_rule, constant={0})
        draw = mixture.draw(tree_leaves(queries[0])[0].detach().float())
    if mixture.within is None:
        return queries, method.query(draw.apply(views[0], mixture.others), 0), draw
    with mixture.within(draw):
        return queries, method.query(views[0], 0), draw
