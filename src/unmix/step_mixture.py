"""The mixtures of a training step: what draws them, the rule, and that both go with the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unmix.credit import Rule, UnMixRule
from unmix.distributed import world_size
from unmix.errors import UserError
from unmix.methods.base import Method
from unmix.mixtures import MixtureDraw, MixtureOperator
from unmix.mixtures.draws import MaskDraw, PairDraw
from unmix.mixtures.manifold import FeatureDraw
from unmix.mixtures.operators import Drawn
from unmix.mixtures.own_draws import OneOwner
from unmix.mixtures.pasting import PasteDraw
from unmix.randomness import generator_for
from unmix.together import (
    Names,
    check_label_space,
    check_rule,
    check_together,
    smallest_batch,
)

__all__ = ["Mixture", "draw_mixture", "fitted", "with_mixtures"]


@dataclass(frozen=True)
class Mixture:
    """The mixture of a step and its mixing rule.

    Attributes:
        operator: Draws the label-space mixtures; or the mixtures, where they are drawn already.
        rule: Weights the loss of the mixtures.
        others: Further views of the images, from which the other owners' pixels come; by default
            the view that the rule takes them from, if it is for one.
        joint: Encode the first view and its mixtures in one forward, so that batch norm takes its
            statistics over both; None is as the rule was released: apart, but of MixCo. It needs
            an operator that mixes pixels, and needs no features for it.
        generator: For the draw; by default that of the step.
        checked: Whether operator and rule are known to go with the method, as those of a `Stepper`;
            else `objective` checks it.

    Raises:
        UserError: if the operator is no mixture of label space, or the rule is none.
    """

    operator: MixtureOperator | MixtureDraw
    rule: Rule = UnMixRule()  # noqa: RUF009 - frozen
    others: Sequence[Tensor] = ()
    joint: bool | None = None
    generator: torch.Generator | None = None
    checked: bool = field(default=False, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if torch.compiler.is_compiling():
            return
        if not hasattr(self.operator, "owners"):
            check_label_space(self.operator)
        if not isinstance(self.rule, Rule):
            raise UserError(
                f'rule: {self.rule!r} is no rule; give one, such as unmix.rule("imix").'
            )

    def draw(
        self,
        view: Tensor,
        generator: torch.Generator,
        features: Tensor | None = None,
        attention: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for the first view, (N, C, H, W); features are (N, D), attention (N, h, w)."""
        return self._operator.draw_for(view, self.generator or generator, features, attention)

    @property
    def needs_attention(self) -> bool:
        """Whether the draw depends on where the encoder looks in the clean first view."""
        return self._operator.needs_attention

    @property
    def needs_features(self) -> bool:
        """Whether the draw needs features of the clean first view."""
        return self._operator.needs_features

    @property
    def one_forward(self) -> bool:
        """Whether clean and mixed images are encoded in one forward."""
        joint = self.rule.joint if self.joint is None else self.joint
        possible = self._operator.mixes_pixels and not isinstance(self.operator, FeatureDraw)
        possible = possible and not self.needs_features
        return joint and possible and self.rule.keeps_clean

    @property
    def _operator(self) -> MixtureOperator:
        given = self.operator
        return given if isinstance(given, MixtureOperator) else Drawn(given)


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
    number: int = 0,
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
        number: Of the mixture, where a step has several; each has a draw of its own.
    """
    # The loss may be one number for the batches of all processes; then so is the weight.
    alike = method.coupled and world_size() > 1
    place: tuple[int | str, ...] = (step, part) if part else (step,)
    place = (*place, f"mixture {number + 1}") if number else place
    generator = generator_for(seed, "mixture", *place) if alike else None
    if rule.partner_view:
        others = [views[rule.partner_view]]
    return Mixture(operator, rule, others, joint, generator, checked=True)


def with_mixtures(
    method: Method,
    views: Sequence[Tensor],
    mixing: Sequence[tuple[MixtureOperator, Rule]],
    *,
    seed: int,
    step: int,
    part: int = 0,
    joint: bool | None = None,
    mixes: bool = True,
) -> tuple[list[Tensor], list[Mixture]]:
    """The method's views, and the label-space mixtures of a step.

    Args:
        method: The method.
        views: Its views, then what each mixture needs beside them, in order.
        mixing: The operator and the rule of each mixture.
        seed: Seed of the run.
        step: Number of steps done.
        part: Number of the part of a step whose gradients are accumulated.
        joint: See `Mixture`.
        mixes: False for a step without mixtures, whose further views are left out.
    """
    own = list(views[: len(views) - sum(len(operator.extra) for operator, _ in mixing)])
    found, at = [], len(own)
    for number, (operator, rule) in enumerate(mixing if mixes else ()):
        others = views[at : at + len(operator.extra)]
        at += len(others)
        found.append(
            draw_mixture(
                method, own, others, operator, rule,
                seed=seed, step=step, part=part, joint=joint, number=number,
            )
        )  # fmt: skip
    return own, found


def fitted(
    mixtures: Sequence[Mixture], method: Method, views: Sequence[Tensor]
) -> Sequence[Mixture]:
    """The mixtures of a step with what follows from the method and the rule, as in a `Stepper`.

    Raises:
        UserError: if mixture, rule, method and views do not go together, with what does.
    """
    if all(mixture.checked for mixture in mixtures):
        return mixtures
    return [each if each.checked else _fitted(each, method, views) for each in mixtures]


def _fitted(mixture: Mixture, method: Method, views: Sequence[Tensor]) -> Mixture:
    operator, rule = mixture.operator, mixture.rule
    names = Names.of(method, type(rule).__name__, operator)
    if isinstance(operator, MixtureOperator):
        suited = check_together(
            operator, rule, method, names, joint=bool(mixture.joint), processes=world_size(),
            weightless=True,
        )  # fmt: skip
        _check_step(mixture, suited, method, names, len(views[0]))
        # Whole patches are a choice of a run: of any other boxes the shares are exact too.
        operator = operator if hasattr(operator, "align") else suited
    else:
        check_rule(rule, method, names)
        _check_drawn(operator, rule, method, names, len(views[0]), bool(mixture.joint))
    others = mixture.others
    if rule.partner_view and not others:
        others = [views[rule.partner_view]]
    return replace(mixture, operator=operator, others=others, checked=True)


def _check_drawn(
    draw: MixtureDraw, rule: Rule, method: Method, names: Names, n: int, joint: bool
) -> None:
    """As `check_together`, of what is drawn already.

    Raises:
        UserError: if it does not go with the rule or the method.
    """
    of_features = isinstance(draw, FeatureDraw)
    by_place = any(a == b for a, b, _ in method.position_pairs_of(method.views))
    if method.coupled and draw.per_sample:
        raise UserError(
            f"draw: it has a weight for each sample, and the loss of {names.method} is a scalar "
            'per batch; draw with `per="batch"`.'
        )
    if rule.of_pairs and (isinstance(draw, OneOwner) or tuple(draw.owners.shape) != (n, 2)):
        raise UserError(
            f"draw: {names.rule} is for a mixture of each of the {n} images with another one; "
            f"this {names.mixture} has {tuple(draw.owners.shape)} owners."
        )
    if of_features and (joint or rule.of_pixels or rule.both_views or rule.every_crop):
        what = "joint" if joint else names.rule
        raise UserError(f"draw: {what} is for mixtures of pixels, and this one is of a layer.")
    if by_place and (of_features or isinstance(draw, PasteDraw)):
        raise UserError(
            f"draw: the loss of {names.method} is by patch, and this {names.mixture} does not "
            "leave an image's pixels in their place."
        )
    if rule.in_parts and not _is_of_regions(draw):
        raise UserError(
            f"draw: {names.rule} pools the parts of each image apart, and in this {names.mixture} "
            "pixels are of several; give boxes or masks, such as those of unmix.CutMix()."
        )


def _is_of_regions(draw: MixtureDraw) -> bool:
    """Whether each pixel is of one image."""
    if isinstance(draw, PairDraw) and not isinstance(draw, FeatureDraw):
        return bool(((draw.ratio == 0) | ~draw.is_mixed).all())
    return isinstance(draw, PasteDraw) or (
        isinstance(draw, MaskDraw) and draw.mask.dtype == torch.bool
    )


def _check_step(
    mixture: Mixture, operator: MixtureOperator, method: Method, names: Names, n: int
) -> None:
    least = smallest_batch(operator, method)
    if n < least or (mixture.rule.even and n % 2):
        wanted = f"{least} or more" if n < least else "an even number"
        raise UserError(
            f"views: {n} images; {names.mixture} with {names.rule} and {names.method} needs "
            f"{wanted}."
        )
    if method.coupled and world_size() > 1 and mixture.generator is None:
        raise UserError(
            f"generator: {names.method} has one loss for the batches of all processes, so all must "
            "draw the same weight; give the mixture a generator of the same seed in each."
        )
