"""Which method, mixture and mixing rule go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from unmix.backbones import is_vit, patch_side, why_not_in_parts
from unmix.credit import Rule, UnMixRule
from unmix.credit import rule as rule_named
from unmix.display import counted
from unmix.distributed import world_size
from unmix.errors import UserError, check_number
from unmix.methods import METHODS, Method
from unmix.mixtures import MixtureOperator, UnMix
from unmix.randomness import generator_for

__all__ = [
    "Names",
    "check_crops",
    "check_label_space",
    "check_rule",
    "check_together",
    "mixing_of",
    "shares_of",
    "smallest_batch",
]

_OF_PAIRS = (
    "global, region, resizemix, gridmix, fmix, mixmask, smoothmix, saliencymix or attentivemix"
)
_IN_PLACE = "coin, global, region, gridmix, fmix, mixmask, smoothmix, patchmix or dirichlet"


@dataclass(frozen=True)
class Names:
    """Names of the parts, for messages.

    Attributes:
        method: Such as "moco".
        rule: Such as "imix".
        mixture: Such as "gridmix".
        backbone: Such as "resnet18".
    """

    method: str
    rule: str
    mixture: str
    backbone: str

    @classmethod
    def of(cls, method: Method, rule: str, operator: Any) -> Names:
        """The names of objects."""
        named = {kind: name for name, kind in METHODS.items()}
        return cls(
            named.get(type(method), type(method).__name__),
            rule,
            type(operator).__name__,
            type(method.backbone).__name__,
        )


def check_together(
    operator: MixtureOperator,
    rule: Rule,
    method: Method,
    names: Names,
    *,
    joint: bool = False,
    processes: int = 1,
    weightless: bool = False,
) -> MixtureOperator:
    """Check that a mixture and a rule apply to a method.

    Args:
        operator: Draws the mixture.
        rule: Weights its loss.
        method: The method.
        names: Of all of them.
        joint: Whether clean and mixed images are encoded in one forward.
        processes: Those that share a step.
        weightless: Whether the loss of the mixtures may have the weight 0.

    Returns:
        The operator, with what follows from the method's encoder.

    Raises:
        UserError: if they do not, with what does.
    """
    check_rule(rule, method, names)
    if not weightless and (why := _without_weight(rule, method)) is not None:
        raise _refused(why, rule, method, names)
    if method.coupled and operator.shares_vary:
        raise UserError(
            f'sample does not apply to `method="{names.method}"`, whose loss is a scalar per '
            "batch; use batch.",
            parameter="per",
        )
    # Of one number for all processes the weight is one too, and they see other images.
    seen = (operator.needs_pixels or operator.needs_attention) and not operator.extra
    if method.coupled and processes > 1 and seen:
        raise UserError(
            f"{names.mixture} chooses a place in each device's own images, and with it a weight; "
            f'`method="{names.method}"` has one loss, of one weight, for all devices. Use region, '
            "gridmix or fmix, or one device.",
            parameter="mixture",
        )
    _check_pairs(operator, rule, names)
    _check_in_place(operator, method, names)
    if rule.every_crop:
        _check_every_crop(operator, names, joint)
    if rule.in_parts:
        _check_in_parts(operator, method, names, joint)
    patch = patch_side(method.backbone) if is_vit(method.backbone) else None
    operator = operator.for_encoder(method, names.backbone, patch)
    if method.position_pairs and method.cell is not None:
        operator = operator.aligned(method.cell)
    if joint:
        _check_joint(operator, rule, method, names)
    return operator


def check_rule(rule: Rule, method: Method, names: Names) -> None:
    """Check that a rule applies to a method.

    Raises:
        UserError: if it does not.
    """
    if (why := rule.refusal(method)) is not None:
        raise _refused(why, rule, method, names)


def _refused(why: str, rule: Rule, method: Method, names: Names) -> UserError:
    more = f"Run `unmix methods {names.method}` for the rules that do."
    if rule.refusal(type(method)) is None:  # some reasons name the option with which it does
        more = "" if "; with " in why else "With the method's default options it does."
    text = f'{names.rule} does not apply to `method="{names.method}"`: {why}. {more}'
    return UserError(text.rstrip(), parameter="rule")


def check_label_space(mixture: Any) -> None:
    """Check that something is a mixture of label space.

    Raises:
        UserError: if it is not.
    """
    if isinstance(mixture, type) or not isinstance(mixture, MixtureOperator):
        raise UserError(
            f"mixture: {getattr(mixture, '__name__', type(mixture).__name__)} is no label-space "
            "mixture; give one, such as unmix.UnMix(). An unmix.ImageMixture() is for image_space."
        )


def _without_weight(rule: Rule, method: Method) -> str | None:
    """Why mixtures would train nothing: all that they are compared with has the weight 0."""
    pairs = [*method.pairs_of(method.views), *method.position_pairs_of(method.views)]
    unmixed = () if rule.keeps_clean else method.unmixed_pairs(method.views)
    if any(pair.share for pair in pairs if pair not in unmixed):
        return None
    return "the loss that mixtures would have a share of has the weight 0"


def check_crops(rules: Sequence[Rule], method: Method, count: int) -> None:
    """Check that the loss is of every small crop that is made, also where it is of mixtures alone.

    Args:
        rules: Of the mixtures of a step.
        method: The method.
        count: The views of a step, small crops included.

    Raises:
        UserError: if mixtures of the first view replace all that crops are compared with.
    """
    if not rules or any(rule.keeps_clean or rule.every_crop for rule in rules):
        return
    pairs = [*method.pairs_of(count), *method.position_pairs_of(count)]
    kept = {pair.query for pair in method.unmixed_pairs(count)}
    kept = kept.union(*(rule.clean_queries(pairs) for rule in rules))
    if left_out := {pair.query for pair in pairs} & set(range(method.views, count)) - kept:
        raise UserError(
            f"{rules[0].label} replaces the clean loss by that of the first view's mixtures, so "
            f"{counted(len(left_out), 'small crop')} would be in no loss; use esvit or replace "
            "with `every_crop=True`, which mix them, unmix, which keeps the clean loss, or no "
            "small crops (`local_crops=0`).",
            parameter="rule",
        )


def shares_of(count: int, given: Sequence[float] | None) -> tuple[float, ...]:
    """The weights of the losses of several mixtures: those given, or equal ones that sum to 1.

    Raises:
        UserError: if there is not one for each, or one is not above 0.
    """
    if given is None:
        return (1 / count,) * count
    if len(given) != count:
        raise UserError(
            f"{len(given)} for {counted(count, 'mixture')}; give one for each.", parameter="shares"
        )
    for share in given:
        check_number("shares", share, above=0)
    return tuple(given)


def smallest_batch(operator: MixtureOperator | None, method: Method) -> int:
    """The fewest images of a step: by halves, twice as many as the method can work with."""
    per_mixture = 1 if operator is None else 2 // operator.mixtures_of(2)
    return method.smallest_batch * per_mixture


def _check_pairs(operator: MixtureOperator, rule: Rule, names: Names) -> None:
    pairing = getattr(operator, "pairing", None)
    if rule.of_pairs and pairing in ("halves", "second_view"):
        raise UserError(
            f'{pairing} does not apply to `rule="{names.rule}"`, which needs a mixture of every '
            "image with another; use reverse or permutation.",
            parameter="pairing",
        )
    if rule.of_pairs and not operator.mixes_pairs:
        raise UserError(
            f'{names.mixture} does not apply to `rule="{names.rule}"`, which is for mixtures of '
            f"two images; use {_OF_PAIRS}.",
            parameter="mixture",
        )
    if rule.of_pixels and not operator.mixes_pixels:
        raise UserError(
            f"{names.mixture} mixes features of the student, and the teacher of "
            f'`rule="{names.rule}"` is asked about pixels; use {_OF_PAIRS}.',
            parameter="mixture",
        )
    if rule.both_views and not operator.mixes_pixels:
        raise UserError(
            f'{names.mixture} mixes features of the first view, and `rule="{names.rule}"` pixels '
            f"of the other one too; use {_OF_PAIRS}.",
            parameter="mixture",
        )


def _check_in_place(operator: MixtureOperator, method: Method, names: Names) -> None:
    """A view that is compared with itself, place by place, needs pixels that stay in place."""
    by_place = any(a == b for a, b, _ in method.position_pairs_of(method.views))
    if not by_place or operator.in_place:
        return
    if getattr(operator, "pairing", None) == "second_view":
        raise UserError(
            f'second_view does not apply to `method="{names.method}"`, whose loss is by patch: '
            "another crop shows other things in the same place; use reverse or permutation.",
            parameter="pairing",
        )
    raise UserError(
        f'{names.mixture} does not apply to `method="{names.method}"`, whose loss is by patch: it '
        f"does not leave an image's pixels in their place; use {_IN_PLACE}.",
        parameter="mixture",
    )


def _check_every_crop(operator: MixtureOperator, names: Names, joint: bool) -> None:
    if operator.extra or not operator.mixes_pixels:
        why = "needs further crops" if operator.extra else "mixes features"
        raise UserError(
            f"{names.mixture} {why} of the first view, and every crop is mixed; use coin, "
            f"{_OF_PAIRS}.",
            parameter="mixture",
        )
    if joint:
        raise UserError(
            "does not apply where every crop is mixed; leave it out.", parameter="joint"
        )


def _check_in_parts(operator: MixtureOperator, method: Method, names: Names, joint: bool) -> None:
    if not operator.mixes_regions:
        raise UserError(
            f'{names.mixture} leaves no part of a mixture to one image, and `rule="{names.rule}"` '
            "pools their features apart; use regionswap, region, resizemix, gridmix or fmix.",
            parameter="mixture",
        )
    if (why := why_not_in_parts(method.backbone)) is not None:
        raise UserError(
            f"{names.rule} needs features of parts of an image, and {names.backbone} has {why}; "
            "use a ResNet or a ViT.",
            parameter="rule",
        )
    if joint:
        raise UserError(
            "does not apply where parts of mixtures are pooled apart; leave it out.",
            parameter="joint",
        )


def _check_joint(operator: MixtureOperator, rule: Rule, method: Method, names: Names) -> None:
    if (why := method.why_not_joint()) is not None:
        raise UserError(
            f'does not apply to `method="{names.method}"`: {why}; leave it out.', parameter="joint"
        )
    if not rule.keeps_clean:
        raise UserError(
            f'`rule="{names.rule}"` replaces the clean view, so there is none to be encoded with; '
            "leave it out.",
            parameter="joint",
        )
    if operator.needs_features or not operator.mixes_pixels:
        raise UserError(
            "does not apply to pairing by neighbors, which needs the clean features first, nor "
            "with manifold; leave it out.",
            parameter="joint",
        )


def mixing_of(
    mixture: Any, rule: Any, shares: Sequence[float] | None, method: Method, joint: bool | None
) -> list[tuple[MixtureOperator, Rule]]:
    """The operator and the rule of each mixture of a step, from what a user of `Stepper` gives.

    Raises:
        UserError: if they do not go together, with what does.
    """
    several = isinstance(mixture, Sequence)
    mixtures = list(mixture) if several else [mixture]
    rules = list(rule) if isinstance(rule, list | tuple) else [rule] * len(mixtures)
    if len(rules) != len(mixtures):
        raise UserError(f"rule: there are {len(rules)} for {counted(len(mixtures), 'mixture')}.")
    if shares is not None and not several:
        raise UserError("shares: are for several mixtures; give a rule of another share.")
    weights = shares_of(len(mixtures), shares)
    found = []
    for operator, name, weight in zip(mixtures, rules, weights, strict=True):
        each, shared = _parts_of_mixing(operator, name, method, joint)
        if each is not None:
            shared = shared if weight == 1 else replace(shared, share=weight * shared.share)
            found.append((each, shared))
        elif several:
            raise UserError(f"mixture: {operator!r} is no mixture.")
    return found


def _parts_of_mixing(
    mixture: Any, rule: Any, method: Method, joint: bool | None
) -> tuple[MixtureOperator | None, Rule]:
    """The operator and the rule that a user's words mean for a method."""
    shared = rule_named(rule) if isinstance(rule, str) else rule
    if shared is not None and not isinstance(shared, Rule):
        raise UserError(f"rule: {rule!r} is no rule; give a name, or unmix.rule(...).")
    if mixture is None and shared is not None:
        mixture = shared.mixture or UnMix()
    if mixture is None:
        if joint:
            raise UserError("joint: is for a mixture; give one, such as mixture=unmix.UnMix().")
        return None, UnMixRule()
    check_label_space(mixture)
    shared = shared or UnMixRule()
    name = rule if isinstance(rule, str) else type(shared).__name__
    names = Names.of(method, name, mixture)
    mixture = check_together(
        mixture, shared, method, names, joint=bool(joint), processes=world_size()
    )
    shape = (4, 3, 32, 32)
    if not (mixture.needs_features or mixture.needs_pixels or mixture.needs_attention):
        mixture.draw(shape, generator_for(0))  # what cannot be drawn is refused here
    return mixture, shared
