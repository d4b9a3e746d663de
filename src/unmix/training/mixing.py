"""From a run's settings to its label-space mixture and rule, if they go with its method."""

from __future__ import annotations

from typing import Any

from unmix.backbones import is_vit
from unmix.config import Settings
from unmix.credit import Rule, rule
from unmix.errors import UserError
from unmix.methods import Method
from unmix.mixtures import (
    CropMix,
    DirichletMixture,
    ManifoldMixture,
    MixtureOperator,
    PatchMixture,
    ScaleMix,
)
from unmix.mixtures.layers import layers_named

__all__ = ["check_views", "label_space", "smallest_batch"]


def label_space(settings: Settings, method: Method) -> tuple[MixtureOperator | None, Rule]:
    """The operator and the rule of a run; without `unmix` no operator.

    Raises:
        UserError: if the rule, the mixture or a number of theirs has no meaning for the method.
    """
    wanted, run_ = settings.mixture, settings.run
    numbers = {"share": wanted.unmix_share, "temperature": wanted.unmix_temperature}
    shared = rule(wanted.unmix_rule, **{name: n for name, n in numbers.items() if n is not None})
    operator: Any = wanted.label_space(shared.published)
    if operator is None:
        return None, shared
    why = shared.why_not(method)
    if why is not None:
        raise UserError(
            f"--unmix_rule: {wanted.unmix_rule} does not go with --method {run_.method}: {why}. "
            f"What does: unmix methods {run_.method}."
        )
    if method.coupled and _shares_differ(operator):
        raise UserError(
            f"--unmix_per: sample does not go with --method {run_.method}, whose loss is one "
            "number a batch; use batch."
        )
    _check_pairs(operator, shared, settings, method)
    _check_backbone(operator, method, settings)
    if wanted.unmix_joint:
        _check_joint(operator, shared, wanted.unmix_rule, method)
    return operator, shared


def _shares_differ(operator: Any) -> bool:
    """Whether each sample has shares of its own: not where they are all 1, or all counted."""
    if isinstance(operator, (CropMix, PatchMixture, ScaleMix)):
        return False
    alone = getattr(operator, "pairing", None) == "second_view"
    return getattr(operator, "per", "batch") == "sample" and not alone


def smallest_batch(operator: MixtureOperator | None, method: Method) -> int:
    """The fewest images of a step: by halves, of twice as many as the method can work with."""
    halves = getattr(operator, "pairing", None) == "halves"
    return method.smallest_batch * (2 if halves else 1)


def check_views(settings: Settings, method: Method) -> None:
    """Check that small crops have a meaning for the method.

    Raises:
        UserError: if they have none.
    """
    if settings.views.local_crops and not method.multi_crop:
        raise UserError(
            f"--local_crops: {settings.views.local_crops} small crops do not go with --method "
            f"{settings.run.method}, which compares {method.views} view"
            f"{'s' if method.views > 1 else ''} of one size; leave it out, or use --method swav, "
            "dino or deepclusterv2."
        )
    if settings.views.local_crops and is_vit(method.backbone):
        side = settings.views.local_side(settings.run.size or 0)
        sides: Any = method.backbone.patch_embed.patch_size  # type: ignore[union-attr]
        patch = max(sides) if isinstance(sides, (tuple, list)) else int(sides)
        if side % patch:
            raise UserError(
                f"--local_size: patches of {patch} pixels do not fill crops of {side}; use a "
                f"multiple of {patch}."
            )


def _check_pairs(operator: Any, shared: Rule, settings: Settings, method: Method) -> None:
    name, pairing = settings.mixture.unmix_rule, getattr(operator, "pairing", None)
    several = isinstance(operator, (DirichletMixture, PatchMixture))
    if shared.of_pairs and (several or operator.extra):
        raise UserError(
            f"--unmix_mixture: {settings.mixture.unmix_mixture} does not go with --unmix_rule "
            f"{name}, which is about two images; use global, region, resizemix, gridmix or fmix."
        )
    if shared.of_pairs and pairing in ("halves", "second_view"):
        raise UserError(
            f"--unmix_pairing: {pairing} does not go with --unmix_rule {name}, which needs every "
            "image's mixture with another; use reverse or permutation."
        )
    if shared.both_views and isinstance(operator, ManifoldMixture):
        raise UserError(
            f"--unmix_mixture: manifold mixes features of the first view, and --unmix_rule {name} "
            "pixels of the other one too; use global, region, resizemix, gridmix or fmix."
        )
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


def _check_backbone(operator: Any, method: Method, settings: Settings) -> None:
    backbone = settings.model.backbone
    if isinstance(operator, PatchMixture) and not is_vit(method.backbone):
        raise UserError(
            f"--unmix_mixture: patchmix mixes the patches that a ViT sees, and {backbone} is none; "
            "use --backbone timm:vit_tiny_patch16_224 or another ViT, or gridmix."
        )
    if isinstance(operator, ManifoldMixture):
        layers_named(method, operator.layer)


def _check_joint(operator: Any, shared: Rule, name: str, method: Method) -> None:
    if hasattr(method, "codes"):
        raise UserError(
            "--unmix_joint: does not go with swav, whose codes are of all that is encoded at once; "
            "leave it out."
        )
    if not shared.keeps_clean:
        raise UserError(
            f"--unmix_joint: --unmix_rule {name} replaces the clean view, so there is none to be "
            "encoded with; leave it out."
        )
    if operator.needs_features or isinstance(operator, ManifoldMixture):
        raise UserError(
            "--unmix_joint: does not go with pairing by neighbours, which needs the clean features "
            "first, nor with manifold; leave it out."
        )
