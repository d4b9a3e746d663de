"""From a run's settings to its label-space mixture and rule, if they go with its method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unmix.backbones import AlexNet, ResNet, is_vit, patch_side, takes_size
from unmix.config import Settings
from unmix.credit import Rule, rule
from unmix.display import counted
from unmix.errors import UserError, renamed
from unmix.methods import METHODS, Method
from unmix.mixtures import MixtureOperator
from unmix.mixtures.registry import name_of, renaming
from unmix.randomness import generator_for
from unmix.together import Names, check_crops, check_together, shares_of, smallest_batch

__all__ = ["check_views", "label_space"]

Mixing = list[tuple[MixtureOperator, Rule]]

_OF_RULES = ("share", "temperature", "every_crop")
"""Parameters of rules; the settings that give them are called so after `unmix_`."""


def label_space(settings: Settings, method: Method) -> Mixing:
    """The operator and the rule of each mixture of a run's steps; none without `unmix`.

    Raises:
        UserError: if the rule, the mixture or a number of theirs does not apply to the method.
    """
    wanted, run_, model = settings.mixture, settings.run, settings.model
    words = {name: f"unmix_{name}" for name in _OF_RULES}
    given = {name: getattr(wanted, word) for name, word in words.items()}
    with renamed({"rule": "unmix_rule", **words}):
        shared = rule(
            wanted.unmix_rule, **{name: value for name, value in given.items() if value is not None}
        )
    found: Mixing = []
    operators = wanted.label_spaces(shared.mixture)
    if shared.every_crop and len(operators) > 1:
        raise UserError(
            f"{counted(len(operators), 'mixture')} a step do not go with "
            f"`unmix_rule={wanted.unmix_rule}`, which mixes every crop; give one, or another rule.",
            parameter="unmix_mixture",
        )
    weights = shares_of(len(operators), wanted.unmix_shares) if operators else ()
    for operator, weight in zip(operators, weights, strict=True):
        name = name_of(operator)
        names = Names(run_.method, wanted.unmix_rule, name, model.backbone)
        with renamed(renaming(name)):
            operator = check_together(
                operator, shared, method, names, joint=bool(wanted.unmix_joint),
                processes=settings.machine.processes,
            )  # fmt: skip
            if not (operator.needs_features or operator.needs_pixels or operator.needs_attention):
                side = run_.size or 0
                operator.draw(
                    (4, 3, side, side), generator_for(0)
                )  # what cannot be drawn ends here
        _check_batch(operator, shared, settings, method)
        own = shared if weight == 1 else replace(shared, share=weight * shared.share)
        found.append((operator, own))
    with renamed({"rule": "unmix_rule", **words}):
        check_crops([own for _, own in found], method, method.views + settings.views.local_crops)
    return found


def check_views(settings: Settings, method: Method) -> None:
    """Check that what is said of the second view and of local crops applies to the method.

    Raises:
        UserError: if it does not.
    """
    if method.views < 2 and (names := settings.views.given_for("second")):
        raise UserError(
            f"--{names[0]}: does not apply to --method {settings.run.method}, which makes one view "
            "of an image; leave it out."
        )
    if settings.views.local_crops and not method.multi_crop:
        *most, last = (name for name, kind in METHODS.items() if kind.multi_crop)
        raise UserError(
            f"--local_crops: {settings.views.local_crops} small crops do not go with --method "
            f"{settings.run.method}, which compares {method.views} view"
            f"{'s' if method.views > 1 else ''} of one size; leave it out, or use --method "
            f"{', '.join(most)} or {last}."
        )
    if settings.views.local_crops and not isinstance(method.backbone, (ResNet, AlexNet)):
        side = settings.views.local_side(settings.run.size or 0)
        if is_vit(method.backbone) and side % (patch := patch_side(method.backbone)):
            raise UserError(
                f"--local_size: patches of {patch} pixels do not fill crops of {side}; use a "
                f"multiple of {patch}."
            )
        if not takes_size(method.backbone, side):
            raise UserError(
                f"--local_size: {side} is no size of images that {settings.model.backbone} takes "
                f"when it is built for {settings.run.size}; use --local_size {settings.run.size}, "
                "no local crops, or another backbone."
            )


def _check_batch(operator: Any, shared: Rule, settings: Settings, method: Method) -> None:
    name = settings.mixture.unmix_rule
    size = settings.run.batch_size // settings.machine.processes
    if size < (least := smallest_batch(operator, method)):
        raise UserError(
            f"--unmix_pairing: halves makes {size // 2} mixtures of {size} images, and --method "
            f"{settings.run.method} needs {least // 2}; use --batch_size {least} or more, or "
            "reverse."
        )
    if shared.even and size % 2:
        raise UserError(
            f"--batch_size: {size} images for --unmix_rule {name} leave one without a partner; use "
            f"{size + 1}."
        )
