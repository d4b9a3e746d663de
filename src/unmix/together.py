"""Which method, mixture and rule for credit go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unmix.backbones import is_vit, patch_side
from unmix.credit import Rule
from unmix.errors import UserError
from unmix.methods import METHODS, Method
from unmix.mixtures import (
    CropMix,
    DirichletMixture,
    ManifoldMixture,
    MixtureOperator,
    PatchMixture,
    ScaleMix,
)
from unmix.mixtures.layers import layers_named

__all__ = ["Names", "check_together", "smallest_batch"]

_PAIRS = "global, region, resizemix, gridmix or fmix"


@dataclass(frozen=True)
class Names:
    """What the user calls the parts, for messages.

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
        """The names of objects, which no flag has named."""
        named = {kind: name for name, kind in METHODS.items()}
        return cls(
            named.get(type(method), type(method).__name__),
            rule,
            type(operator).__name__,
            type(method.backbone).__name__,
        )


def check_together(
    operator: MixtureOperator, rule: Rule, method: Method, names: Names, *, joint: bool = False
) -> None:
    """Check that a mixture and a rule have a meaning for a method.

    Args:
        operator: Draws the mixture.
        rule: Shares its loss.
        method: The method.
        names: Of all of them.
        joint: Whether clean and mixed images are encoded in one forward.

    Raises:
        UserError: if they have none, with what has.
    """
    why = rule.why_not(method)
    if why is not None:
        raise UserError(
            f'{names.rule} does not apply to `method="{names.method}"`: {why}. Run `unmix methods '
            f"{names.method}` for the rules that do.",
            parameter="rule",
        )
    if method.coupled and _shares_differ(operator):
        raise UserError(
            f'sample does not apply to `method="{names.method}"`, whose loss is a scalar per '
            "batch; use batch.",
            parameter="per",
        )
    _check_pairs(operator, rule, names)
    _check_backbone(operator, method, names)
    if joint:
        _check_joint(operator, rule, method, names)


def smallest_batch(operator: MixtureOperator | None, method: Method) -> int:
    """The fewest images of a step: by halves, of twice as many as the method can work with."""
    halves = getattr(operator, "pairing", None) == "halves"
    return method.smallest_batch * (2 if halves else 1)


def _shares_differ(operator: Any) -> bool:
    """Whether each sample has shares of its own: not where they are all 1, or all counted."""
    if isinstance(operator, (CropMix, PatchMixture, ScaleMix)):
        return False
    alone = getattr(operator, "pairing", None) == "second_view"
    return getattr(operator, "per", "batch") == "sample" and not alone


def _check_pairs(operator: Any, rule: Rule, names: Names) -> None:
    pairing = getattr(operator, "pairing", None)
    several = isinstance(operator, (DirichletMixture, PatchMixture))
    if rule.of_pairs and (several or operator.extra):
        raise UserError(
            f'{names.mixture} does not apply to `rule="{names.rule}"`, which is for mixtures of '
            f"two images; use {_PAIRS}.",
            parameter="mixture",
        )
    if rule.of_pairs and pairing in ("halves", "second_view"):
        raise UserError(
            f'{pairing} does not apply to `rule="{names.rule}"`, which needs a mixture of '
            "every image with another; use reverse or permutation.",
            parameter="pairing",
        )
    if rule.both_views and isinstance(operator, ManifoldMixture):
        raise UserError(
            f'manifold mixes features of the first view, and `rule="{names.rule}"` pixels of the '
            f"other one too; use {_PAIRS}.",
            parameter="mixture",
        )


def _check_backbone(operator: Any, method: Method, names: Names) -> None:
    if isinstance(operator, PatchMixture) and not is_vit(method.backbone):
        raise UserError(
            f"patchmix mixes the patches that a ViT sees, and {names.backbone} is not one; use "
            '`backbone="timm:vit_tiny_patch16_224"` or another ViT, or gridmix.',
            parameter="mixture",
        )
    if isinstance(operator, PatchMixture) and operator.patch_size % patch_side(method.backbone):
        raise UserError(
            f"{operator.patch_size} pixels would cut the patches that {names.backbone} sees, of "
            f"{patch_side(method.backbone)}; use that or a multiple.",
            parameter="patch_size",
        )
    if isinstance(operator, ManifoldMixture):
        layers_named(method, operator.layer)


def _check_joint(operator: Any, rule: Rule, method: Method, names: Names) -> None:
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
    if operator.needs_features or isinstance(operator, ManifoldMixture):
        raise UserError(
            "does not go with pairing by neighbors, which needs the clean features first, nor "
            "with manifold; leave it out.",
            parameter="joint",
        )
