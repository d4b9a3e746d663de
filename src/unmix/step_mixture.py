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
from unmix.mixtures.operators import Drawn
from unmix.randomness import generator_for
from unmix.together import (
    Names,
    check_label_space,
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
        return self.drawing.draw_for(view, self.generator or generator, features, attention)

    @property
    def needs_attention(self) -> bool:
        """Whether the draw depends on where the encoder looks in the clean first view."""
        return self.drawing.needs_attention

    @property
    def needs_features(self) -> bool:
        """Whether the draw needs features of the clean first view."""
        return self.drawing.needs_features

    @property
    def one_forward(self) -> bool:
        """Whether clean and mixed images are encoded in one forward."""
        joint = self.rule.joint if self.joint is None else self.joint
        possible = self.drawing.mixes_pixels and not self.needs_features
        return joint and possible and self.rule.keeps_clean

    @property
    def drawing(self) -> MixtureOperator:
        """What draws: the operator, or what returns the mixtures that are drawn already."""
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
    rule, given = mixture.rule, mixture.drawing
    names = Names.of(method, type(rule).__name__, mixture.operator)
    suited = check_together(
        given, rule, method, names, joint=bool(mixture.joint), processes=world_size(),
        weightless=True,
    )  # fmt: skip
    _check_step(mixture, suited, method, names, len(views[0]))
    # Whole patches are a choice of a run: of any other boxes the shares are exact too.
    operator = given if hasattr(given, "align") else suited
    others = mixture.others
    if rule.partner_view and not others:
        others = [views[rule.partner_view]]
    return replace(mixture, operator=operator, others=others, checked=True)


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
    alike = mixture.generator is not None or isinstance(operator, Drawn)
    if method.coupled and world_size() > 1 and not alike:
        raise UserError(
            f"generator: {names.method} has one loss for the batches of all processes, so all must "
            "draw the same weight; give the mixture a generator of the same seed in each."
        )
