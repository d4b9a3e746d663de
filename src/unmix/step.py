"""The loss of one training step, with or without a mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unmix.backbones import draws_in_training
from unmix.credit import Mixed
from unmix.distributed import rank, world_size
from unmix.encoding import Encoded, clean_queries, encode, encode_every_crop
from unmix.errors import UserError
from unmix.memory_update import MemoryUpdate
from unmix.methods.base import Method, Pair
from unmix.mixtures import Draw
from unmix.mixtures.own_draws import OneOwner
from unmix.randomness import generator_for, global_seed
from unmix.stages import stage
from unmix.step_mixture import Mixture, draw_mixture, fitted, with_mixtures

__all__ = [
    "MemoryUpdate",
    "Mixture",
    "Objective",
    "draw_mixture",
    "mix_views",
    "objective",
    "step_generator",
    "with_mixtures",
]


@dataclass(frozen=True, eq=False)
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


def objective(
    method: Method,
    views: Sequence[Tensor],
    index: Tensor,
    generator: torch.Generator,
    mixture: Mixture | Sequence[Mixture] | None = None,
) -> Objective:
    """The loss of clean views, with that of the first view's mixtures if there are any.

    L = sum over the method's pairs (a, b) of
        l(q_a, t_b)  +  w l(q_mix, t_b)  +  (1 - w) l(q_mix, t_b[p])

    under Un-Mix; see `unmix.credit` for the other rules, and for losses by position. The first view
    is mixed, as published, and its mixture is encoded once, also where the method is symmetric.
    Targets come from clean views only (but for SDMP and exact ones), and so do memories. Of several
    mixtures each has its own draw, forward and rule, and their losses are added; the clean loss is
    left out only if all their rules replace it.

    Args:
        method: The method.
        views: Its clean views, tensors (N, C, H, W); small crops come last.
        index: Sample ids, int64 (N,).
        generator: For what the method draws (negatives, shuffled batch norm), and its layers
            (dropout, stochastic depth).
        mixture: The label-space mixture, or several, or None.

    Raises:
        UserError: if there are too few views, or mixture, rule and method do not go together.
    """
    if len(views) < method.views:
        raise UserError(
            f"views: {len(views)} were given; {type(method).__name__} needs {method.views}."
        )
    if not isinstance(generator, torch.Generator):
        raise UserError(
            f"generator: {generator!r} is none of PyTorch; give torch.Generator().manual_seed(0)."
        )
    mixtures = fitted(_mixtures(mixture), method, views)
    if not draws_in_training(method):
        return _objective(method, views, index, generator, mixtures)
    with global_seed(generator, views[0].device):
        return _objective(method, views, index, generator, mixtures)


def _mixtures(given: Any) -> Sequence[Mixture]:
    """The mixtures of a step, from one, several or None."""
    mixtures = [given] if isinstance(given, Mixture) else given or ()
    if not isinstance(mixtures, list | tuple) or not all(isinstance(m, Mixture) for m in mixtures):
        raise UserError(
            f"mixture: {given!r}; give a Mixture(operator, rule), such as "
            "unmix.Mixture(unmix.UnMix()), or a list of them."
        )
    return mixtures


def _objective(
    method: Method,
    views: Sequence[Tensor],
    index: Tensor,
    generator: torch.Generator,
    mixtures: Sequence[Mixture],
) -> Objective:
    clean = _Clean.of(method, len(views), mixtures)
    if mixtures:
        queries, encoded = _encoded(method, views, mixtures, clean, generator)
    else:
        queries, encoded = clean_queries(method, views, clean.all), []
    targets = method.targets(views, queries, index, generator)
    beside, losses = None, []
    # Before the mixtures: NCE's constant is what the first comparison says.
    if clean.all or method.regularized_views(len(views)):
        beside = clean_loss(method, clean.pairs, clean.positions, queries, targets, len(views))
    for mixture, each in encoded:
        first = encoded[0][1] if mixture.rule.every_crop else each
        of_mixtures = partial(
            _targets_of_mixtures, method, views, index, generator, first, mixture.others
        )
        mixed = Mixed(
            method, each.draw, each.query, queries, targets, each.pairs, of_mixtures,
            len(views[0]), each.positions, each.view,
        )  # fmt: skip
        losses.append(mixture.rule(mixed))
    return _sum(beside, losses, MemoryUpdate(method, queries, targets, index))


class _Clean(NamedTuple):
    """The comparisons of a step's clean queries.

    Attributes:
        pairs: Those by sample: all, or what mixtures that replace them leave.
        positions: Those by position, likewise.
    """

    pairs: Sequence[Pair]
    positions: Sequence[Pair]

    @classmethod
    def of(cls, method: Method, count: int, mixtures: Sequence[Mixture]) -> _Clean:
        """Those of a step of so many views: a mixture that keeps the clean loss keeps all."""
        if not mixtures or any(mixture.rule.keeps_clean for mixture in mixtures):
            return cls(method.pairs_of(count), method.position_pairs_of(count))
        return cls(method.unmixed_pairs(count), ())

    @property
    def all(self) -> list[Pair]:
        """By sample, then by position."""
        return [*self.pairs, *self.positions]


def _encoded(
    method: Method,
    views: Sequence[Tensor],
    mixtures: Sequence[Mixture],
    clean: _Clean,
    generator: torch.Generator,
) -> tuple[dict[int, Any], list[tuple[Mixture, Encoded]]]:
    """The clean queries, and the mixtures that losses are taken of, each with its comparisons.

    Raises:
        UserError: if mixtures of every crop are among several.
    """
    if any(mixture.rule.every_crop for mixture in mixtures):
        if len(mixtures) > 1:
            raise UserError("mixtures of every crop do not go with others.", parameter="mixture")
        queries, of_views = encode_every_crop(method, views, mixtures[0], clean.all, generator)
        return queries, [(mixtures[0], each) for each in of_views]
    pairs, positions = method.pairs_of(len(views)), method.position_pairs_of(len(views))
    unmixed = method.unmixed_pairs(len(views))
    rest = [pair for pair in pairs if pair not in unmixed]
    taken = [pairs if mixture.rule.keeps_clean else rest for mixture in mixtures]
    of_rules: set[int] = set()
    for mixture, of_pairs in zip(mixtures, taken, strict=True):
        of_rules |= mixture.rule.clean_queries([*of_pairs, *positions])
    queries, found = encode(method, views, mixtures, clean.all, of_rules, generator)
    return queries, [
        (mixture, Encoded(0, draw, q_mix, of_pairs, positions))
        for mixture, of_pairs, (q_mix, draw) in zip(mixtures, taken, found, strict=True)
    ]


def _targets_of_mixtures(
    method: Method,
    views: Sequence[Tensor],
    index: Tensor,
    generator: torch.Generator,
    first: Encoded,
    others: Sequence[Tensor],
) -> Mapping[int, Any]:
    """The targets of the large views, mixed by the draw of the first one."""
    with stage("mixture"):
        mixed = [first.draw.apply(views[0], others)]
        # Of an image's own crops there are none of the other views, which stay as they are.
        own = isinstance(first.draw, OneOwner)
        mixed += [v if own else first.draw.apply(v) for v in views[1 : method.views]]
    rest = [v for v in method.target_queries if v != 0]
    with nullcontext() if method.target_gradient else torch.no_grad():
        queries = {0: first.query, **{v: method.query(mixed[v], v) for v in rest}}
    return method.targets(mixed, queries, index, generator)


def _sum(clean: Tensor | None, losses: Sequence[Tensor], update: MemoryUpdate) -> Objective:
    """The loss of a step, of the clean part and each mixture's, at least one of which is there."""
    if not losses:
        assert clean is not None
        return Objective(clean, clean.detach(), None, update)
    mixed = torch.stack(list(losses)).sum() if len(losses) > 1 else losses[0]
    if clean is None:
        return Objective(mixed, None, mixed.detach(), update)
    return Objective(clean + mixed, clean.detach(), mixed.detach(), update)


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
