"""The loss of one training step, with or without a mixture."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from unmix.backbones import draws_in_training
from unmix.credit import Mixed, Rule, UnMixRule, per_tensor
from unmix.distributed import rank, world_size
from unmix.encoding import Encoded, clean_queries, encode_every_crop, features_for, query_in_parts
from unmix.methods.base import Method, Pair
from unmix.mixtures import Draw, MixtureDraw, MixtureOperator
from unmix.mixtures.operators import Drawn
from unmix.randomness import generator_for, global_seed
from unmix.stages import stage

__all__ = [
    "MemoryUpdate",
    "Mixture",
    "Objective",
    "draw_mixture",
    "mix_views",
    "objective",
    "split_views",
    "step_generator",
]


@dataclass(frozen=True)
class Mixture:
    """The mixture of a step and its mixing rule.

    Attributes:
        operator: Draws the label-space mixtures; or the mixtures, where they are drawn already.
        rule: Weights the loss of the mixtures.
        others: Further views of the images, from which the other owners' pixels come.
        joint: Encode the first view and its mixtures in one forward, so that batch norm takes its
            statistics over both; None is as the rule was released: apart, but of MixCo. It needs
            an operator that mixes pixels, and needs no features for it.
        generator: For the draw; by default that of the step.
    """

    operator: MixtureOperator | MixtureDraw
    rule: Rule = UnMixRule()  # noqa: RUF009 - frozen
    others: Sequence[Tensor] = ()
    joint: bool | None = None
    generator: torch.Generator | None = None

    def draw(
        self, view: Tensor, generator: torch.Generator, features: Tensor | None = None
    ) -> MixtureDraw:
        """Draw for the first view, (N, C, H, W); features are (N, D)."""
        return self._operator.draw(view.shape, self.generator or generator, features)

    @property
    def needs_features(self) -> bool:
        """Whether the draw needs features of the clean first view."""
        return self._operator.needs_features

    @property
    def one_forward(self) -> bool:
        """Whether clean and mixed images are encoded in one forward."""
        joint = self.rule.joint if self.joint is None else self.joint
        possible = self._operator.mixes_pixels and not self.needs_features
        return joint and possible and self.rule.keeps_clean

    @property
    def _operator(self) -> MixtureOperator:
        given = self.operator
        return given if isinstance(given, MixtureOperator) else Drawn(given)


@dataclass(frozen=True)
class MemoryUpdate:
    """What a method remembers of a batch: call it after the backward pass.

    Attributes:
        method: The method.
        queries: The clean queries, by view.
        targets: The clean targets, by view.
        index: Sample ids, int64 (N,).
    """

    method: Method
    queries: Mapping[int, Any]
    targets: Mapping[int, Any]
    index: Tensor

    def __call__(self) -> None:
        """Update queue, memory bank or center."""
        self.method.update_memory(self.queries, self.targets, self.index)

    def kept(self) -> MemoryUpdate:
        """What is needed until the last part of a step is done, without the graphs."""
        needed = {v: q for v, q in self.queries.items() if v in self.method.memory_queries}
        queries, targets = per_tensor((needed, dict(self.targets)), Tensor.detach)
        return MemoryUpdate(self.method, queries, targets, self.index)

    @staticmethod
    def joined(parts: Sequence[MemoryUpdate]) -> MemoryUpdate:
        """One update of the parts of a batch, in their order: what the whole batch would leave."""
        if len(parts) == 1:
            return parts[0]

        def side_by_side(*rows: Any) -> Any:
            return None if rows[0] is None else torch.cat(rows)

        kept = [part.kept() for part in parts]
        queries = tree_map(side_by_side, *(part.queries for part in kept))
        targets = tree_map(side_by_side, *(part.targets for part in kept))
        index = torch.cat([part.index for part in kept])
        return MemoryUpdate(parts[0].method, queries, targets, index)


@dataclass(frozen=True)
class Objective:
    """The loss of a step and its parts.

    Attributes:
        loss: What to minimize, a scalar.
        clean: The part of the clean views, a detached scalar; None if mixtures replace all of it.
        mixed: The part of the mixtures, a detached scalar; None without them.
        update_memory: Call it after the backward pass: clean queries and targets are remembered.
    """

    loss: Tensor
    clean: Tensor | None
    mixed: Tensor | None
    update_memory: MemoryUpdate


def step_generator(seed: int, step: int, *place: int | str) -> torch.Generator:
    """The random generator of a step; a different one in each process.

    Args:
        seed: Seed of the run.
        step: Number of steps done.
        place: Distinguishes several generators of a step.
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
    if (of_view := getattr(draw, "of_view", None)) is not None:  # drawn apart for every view
        return [of_view(number).apply(view) for number, view in enumerate(views)]
    return [
        (draw if view.shape[2:] == size else draw.resized(*view.shape[2:])).apply(view)  # type: ignore[attr-defined]
        for view in views
    ]


def split_views(
    views: Sequence[Tensor], operator: MixtureOperator | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The method's views, and further ones that only the mixture needs."""
    extra = len(operator.extra) if operator is not None else 0
    return list(views[: len(views) - extra]), list(views[len(views) - extra :])


def draw_mixture(
    method: Method,
    views: Sequence[Tensor],
    others: Sequence[Tensor],
    operator: MixtureOperator,
    rule: Rule,
    *,
    seed: int,
    step: int,
    part: int = 0,
    joint: bool | None = None,
) -> Mixture:
    """The label-space mixture of a step, which is drawn when its loss is computed.

    Args:
        method: The method.
        views: Its clean views, tensors (N, C, H, W).
        others: Further views, for the mixture only.
        operator: Draws the mixture.
        rule: Weights its loss.
        seed: Seed of the run.
        step: Number of steps done.
        part: Number of the part of a step whose gradients are accumulated.
        joint: See `Mixture`.
    """
    # The loss may be one number for the batches of all processes; then so is the weight.
    alike = method.coupled and world_size() > 1
    place = (step, part) if part else (step,)
    generator = generator_for(seed, "mixture", *place) if alike else None
    if rule.partner_view:
        others = [views[rule.partner_view]]
    return Mixture(operator, rule, others, joint, generator)


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

    under Un-Mix; see `unmix.credit` for the other rules, and for losses by position. The first view
    is mixed, as published, and its mixture is encoded once, also where the method is symmetric.
    Targets come from clean views only (but for SDMP and exact ones), and so do memories.

    Args:
        method: The method.
        views: Its clean views, tensors (N, C, H, W); small crops come last.
        index: Sample ids, int64 (N,).
        generator: For what the method draws (negatives, shuffled batch norm), and its layers
            (dropout, stochastic depth).
        mixture: The label-space mixture, or None.
    """
    if not draws_in_training(method):
        return _objective(method, views, index, generator, mixture)
    with global_seed(generator, views[0].device):
        return _objective(method, views, index, generator, mixture)


def _objective(
    method: Method,
    views: Sequence[Tensor],
    index: Tensor,
    generator: torch.Generator,
    mixture: Mixture | None,
) -> Objective:
    pairs, positions = method.pairs_of(len(views)), method.position_pairs_of(len(views))
    if mixture is None:
        queries = clean_queries(method, views, [*pairs, *positions])
        targets = method.targets(views, queries, index, generator)
        clean = clean_loss(method, pairs, positions, queries, targets, len(views))
        update = MemoryUpdate(method, queries, targets, index)
        return Objective(clean, clean.detach(), None, update)
    rule = mixture.rule
    stay = pairs if rule.keeps_clean else method.unmixed_pairs(len(views))
    taken = pairs if rule.keeps_clean else [pair for pair in pairs if pair not in stay]
    stay_by_position = positions if rule.keeps_clean else ()
    clean_pairs = [*stay, *stay_by_position]
    if rule.every_crop:
        queries, mixtures = encode_every_crop(method, views, mixture, clean_pairs, generator)
    else:
        queries, q_mix, draw = encode(
            method, views, mixture, clean_pairs,
            rule.clean_queries([*taken, *positions]), generator,
        )  # fmt: skip
        mixtures = [Encoded(0, draw, q_mix, taken, positions)]
    targets = method.targets(views, queries, index, generator)
    # Before the mixtures: NCE's constant is what the first comparison says.
    beside = None
    if stay or stay_by_position or method.regularized_views(len(views)):
        beside = clean_loss(method, stay, stay_by_position, queries, targets, len(views))

    def targets_of_mixtures() -> Mapping[int, Any]:
        with stage("mixture"):
            first = mixtures[0]
            mixed = [first.draw.apply(views[0], mixture.others)]
            mixed += [first.draw.apply(view) for view in views[1 : method.views]]
        others = [v for v in method.target_queries if v != 0]
        with nullcontext() if method.target_gradient else torch.no_grad():
            q = {0: first.query, **{v: method.query(mixed[v], v) for v in others}}
        return method.targets(mixed, q, index, generator)

    losses = [
        rule(
            Mixed(
                method, each.draw, each.query, queries, targets, each.pairs, targets_of_mixtures,
                len(views[0]), each.positions, each.view,
            )
        )
        for each in mixtures
    ]  # fmt: skip
    mixed = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
    update = MemoryUpdate(method, queries, targets, index)
    if beside is None:
        return Objective(mixed, None, mixed.detach(), update)
    return Objective(beside + mixed, beside.detach(), mixed.detach(), update)


def clean_loss(
    method: Method,
    pairs: Sequence[Pair],
    positions: Sequence[Pair],
    queries: Mapping[int, Any],
    targets: Mapping[int, Any],
    count: int,
) -> Tensor:
    """The sum of the pairs' losses, each by its share, and the method's regularizer, if any.

    Args:
        method: The method.
        pairs: The comparisons of clean queries by sample.
        positions: Those by position.
        queries: By view.
        targets: By view.
        count: The views of the step.
    """
    losses = [share * method.compare(queries[a], targets[b]).mean() for a, b, share in pairs]
    losses += [
        share * method.compare_positions(queries[a], targets[b]).sum(dim=(1, 2)).mean()
        for a, b, share in positions
    ]
    if regularized := sorted(method.regularized_views(count)):
        losses.append(method.regularizer([queries[v] for v in regularized], targets))
    return torch.stack(losses).sum()


def encode(
    method: Method,
    views: Sequence[Tensor],
    mixture: Mixture,
    pairs: Sequence[Pair],
    of_rule: Collection[int],
    generator: torch.Generator,
) -> tuple[dict[int, Any], Any, MixtureDraw]:
    """The clean queries that a step needs, the first view's mixtures' query, and their draw."""
    if mixture.one_forward:
        n = len(views[0])
        with stage("mixture"):
            draw = mixture.draw(views[0], generator)
            mixed = draw.apply(views[0], mixture.others)
        both = [torch.cat([views[0], mixed]), *views[1:]]
        queries = clean_queries(method, both, pairs, of_rule)
        q_mix = per_tensor(queries[0], lambda rows: rows[n:])
        return queries | {0: per_tensor(queries[0], lambda rows: rows[:n])}, q_mix, draw
    constant = {0} if mixture.needs_features else ()
    queries = clean_queries(method, views, pairs, of_rule, constant)
    with stage("mixture"):
        draw = mixture.draw(views[0], generator, features_for(mixture, queries))
    if mixture.rule.in_parts:
        return queries, query_in_parts(method, draw, views[0], mixture.others), draw
    return queries, draw.query(method, views[0], mixture.others), draw
