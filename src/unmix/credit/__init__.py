"""Mixing rules: how the loss of a mixture is shared among its images (the credit)."""

from dataclasses import fields, replace
from typing import Any

from unmix.credit.exact import Exact
from unmix.credit.parts import RegionCL
from unmix.credit.patchmix import PatchMixRule
from unmix.credit.rules import (
    EsViT,
    ImageSpace,
    IMix,
    MixCo,
    Mixed,
    Rule,
    UnMixRule,
)
from unmix.credit.sdmp import SDMP, SDMPReleased
from unmix.credit.sharing import (
    PositionShares,
    Shares,
    of_partner,
    per_tensor,
    shared_loss,
    shared_position_loss,
    soft_cross_entropy,
)
from unmix.credit.special import MixBT, SwAVReleased
from unmix.errors import UserError, check_choice

__all__ = [
    "RULES",
    "SDMP",
    "EsViT",
    "Exact",
    "IMix",
    "ImageSpace",
    "MixBT",
    "MixCo",
    "Mixed",
    "PatchMixRule",
    "PositionShares",
    "RegionCL",
    "Rule",
    "SDMPReleased",
    "Shares",
    "SwAVReleased",
    "UnMixRule",
    "of_partner",
    "per_tensor",
    "rule",
    "shared_loss",
    "shared_position_loss",
    "soft_cross_entropy",
]

RULES: dict[str, Rule] = {
    "unmix": UnMixRule(),
    "replace": UnMixRule(keeps_clean=False),
    "imix": IMix(),
    "mixco": MixCo(),
    "sdmp": SDMP(),
    "mixbt": MixBT(),
    "image_space": ImageSpace(),
    "exact": Exact(),
    "sdmp_released": SDMPReleased(),
    "swav_released": SwAVReleased(),
    "esvit": EsViT(),
    "regioncl": RegionCL(),
    "patchmix": PatchMixRule(),
}
"""The mixing rules by the name that `unmix_rule` takes, with their published numbers."""


def rule(name: str, **changes: Any) -> Rule:
    """A rule by its name, with some of its parameters changed.

    Raises:
        UserError: if there is no such rule, or it has no such parameter.
    """
    found: Any = RULES[check_choice("rule", name, RULES)]
    known = {f.name for f in fields(found)}
    for word in changes:
        if word not in known:
            raise UserError(f'is not for `rule="{name}"`.', parameter=word)
    return replace(found, **changes)
